// SPDX-License-Identifier: Apache-2.0
// How VMs come in, get their first name, and go.
#include "tests/unit/tenancy/host.h"

namespace kvmscope::tenancy::testing {
namespace {

TEST_CASE("the pool is filled at start, with generations after the host's") {
  Host host;
  const auto installs = host.all<InstallSpare>();
  REQUIRE(installs.size() == 3);
  for (std::uint32_t i = 0; i < 3; ++i) {
    REQUIRE(installs[i].identity == core::SlotIdentity{{i + 1}, {i + 2}});
    REQUIRE(installs[i].shape.disks == 4);
  }
  REQUIRE(host.registry.stats().slots_spare == 3);
  REQUIRE(host.registry.stats().slots_total == 11);
}

TEST_CASE("a claimed spare is replaced at once, for as long as slots are free") {
  Host host;
  for (std::uint32_t tgid = 100; tgid < 115; ++tgid) host.start(tgid);
  REQUIRE(host.registry.stats().slots_in_use == 11);
  REQUIRE(host.registry.stats().slots_spare == 0);
  REQUIRE(host.all<InstallSpare>().size() == 11);
}

TEST_CASE("a failed installation is asked for again at the next tick, with another generation") {
  Host host;
  host.hold_installs = true;
  const auto process = host.start(100);
  const core::SlotIdentity failed = host.all<InstallSpare>().back().identity;
  REQUIRE(host.registry.on_install_failed(failed, host.now).empty());
  host.kernel.install_failed(failed);
  host.hold_installs = false;
  host.log.clear();
  host.tick(1s);
  REQUIRE(host.all<InstallSpare>().size() == 1);
  REQUIRE(host.all<InstallSpare>()[0].identity.generation > failed.generation);
  REQUIRE(host.registry.stats().slots_spare == 3);
  REQUIRE(host.epoch(process).state == EpochState::unnamed);
}

TEST_CASE("a VM claimed at exec counts unnamed and is relabelled in place") {
  Host host;
  host.advance(1s);
  const auto process = host.start(100);
  const Epoch unnamed = host.epoch(process);
  REQUIRE(unnamed.state == EpochState::unnamed);
  REQUIRE(unnamed.id.value.empty());
  REQUIRE(unnamed.comm == "qemu-system-x86");
  REQUIRE(unnamed.tenant_index == 0);
  REQUIRE(host.registry.by_slot(unnamed.slot)->serial == unnamed.serial);

  host.log.clear();
  host.advance(3s);
  host.vm("u1", process, "p1");
  const Epoch& named = host.epoch(process);
  REQUIRE(named.state == EpochState::attributed);
  REQUIRE(named.serial == unnamed.serial);
  REQUIRE(named.slot == unnamed.slot);
  REQUIRE(named.start_unix_ns == unnamed.start_unix_ns);
  REQUIRE(named.tenant.value == "p1");
  REQUIRE(named.tenancy_source == "nova");
  REQUIRE(named.id == epoch_id("boot", {"u1"}, process, {"p1"}));
  REQUIRE(named.facts->name == "name-of-u1");

  REQUIRE(host.log.size() == 4);
  REQUIRE(std::get<AddTenant>(host.log[0]).tenant.value == "p1");
  REQUIRE(std::get<AddTenant>(host.log[0]).ring_bytes == Quota{}.ring_bytes);
  REQUIRE(std::get<SetTenant>(host.log[1]).identity == named.slot);
  REQUIRE(std::get<BindTasks>(host.log[2]).cgroup_ids == std::vector<std::uint64_t>{1000});
  REQUIRE(std::get<NumberDisks>(host.log[3]).disks.size() == 1);
  REQUIRE(host.registry.tenants() == std::map<std::uint32_t, core::TenantId>{{1, {"p1"}}});

  host.log.clear();
  host.vm("u1", process, "p1");  // a relist says the same again
  host.tick(1s);
  REQUIRE(host.log.empty());
}

TEST_CASE("counting starts with the process, but not before the slot was there nor after now") {
  Host host;
  const std::uint64_t installed = host.now.unix_ns;
  host.advance(100s);
  const core::ProcessKey at_exec{100, host.ticks()};
  host.advance(250ms);  // the event is a little late
  host.apply(host.registry.on_claimed(at_exec, host.kernel.exec(at_exec), "q", std::nullopt, host.now));
  REQUIRE(host.epoch(at_exec).start_unix_ns == host.now.unix_ns - 250'000'000);

  const core::ProcessKey old{101, 5};  // ran long before; took a slot by itself
  host.apply(host.registry.on_claimed(old, host.kernel.exec(old), "q", std::nullopt, host.now));
  REQUIRE(host.epoch(old).start_unix_ns == installed);

  const core::ProcessKey future{102, host.ticks() + 1};  // ticks are coarse
  host.apply(host.registry.on_claimed(future, host.kernel.exec(future), "q", std::nullopt, host.now));
  REQUIRE(host.epoch(future).start_unix_ns == host.now.unix_ns);

  const auto asked = host.start_untraced(103);
  host.advance(50s);
  host.vm("u", asked, "p");
  REQUIRE(host.epoch(asked).start_unix_ns == host.now.unix_ns);
}

TEST_CASE("a VM that libvirt names first is claimed and attributed at once") {
  Host host;
  const auto process = host.start_untraced(100);
  host.log.clear();
  host.vm("u1", process, "p1");
  REQUIRE(std::get<Claim>(host.log[0]).process == process);
  REQUIRE(host.epoch(process).state == EpochState::attributed);
  REQUIRE(host.kernel.find(host.epoch(process).slot).tenant_index == 1);
}

TEST_CASE("while a claim is under way it is not asked for again, and the kernel's own event answers it too") {
  Host host;
  const auto process = host.start_untraced(100);
  const auto facts = host.facts("u1", process, "p1");
  REQUIRE(host.registry.on_vm(facts, host.now).size() == 1);
  REQUIRE(host.registry.on_vm(facts, host.now).empty());
  REQUIRE(host.registry.tick(host.now).empty());
  const auto identity = *host.kernel.claim(process);
  host.apply(host.registry.on_claimed(process, identity, "", std::nullopt, host.now));  // the event
  const auto serial = host.epoch(process).serial;
  REQUIRE(host.registry.on_claimed(process, identity, "", std::nullopt, host.now).empty());  // the answer
  REQUIRE(host.epoch(process).serial == serial);
  REQUIRE(host.registry.epochs().size() == 1);
}

TEST_CASE("a refused claim is tried again when there are spares, oldest first") {
  Host host;
  host.hold_installs = true;
  for (std::uint32_t tgid = 100; tgid < 103; ++tgid) host.start(tgid);  // the pool is empty now
  const auto first = host.start_untraced(200);
  const auto second = host.start_untraced(150);
  host.vm("u2", second, "p");
  host.vm("u1", first, "p");
  REQUIRE(host.registry.stats().claims_failed == 2);
  host.log.clear();
  host.tick(1s);
  REQUIRE(host.log.empty());  // still no spares

  const auto offer = [&host] {
    for (auto& [number, slot] : host.kernel.slots) {
      if (slot.spare || slot.user.tgid != 0) continue;
      const core::SlotIdentity identity{{number}, slot.generation};
      host.kernel.offer(identity);
      host.apply(host.registry.on_installed(identity, host.now));
      return;
    }
  };
  offer();
  REQUIRE(host.registry.by_process(first) != nullptr);
  REQUIRE(host.registry.by_process(second) == nullptr);
  offer();
  REQUIRE(host.registry.by_process(second)->state == EpochState::attributed);
}

TEST_CASE("five hundred VMs that run already are all claimed through a pool of three") {
  RegistryConfig config = small_config();
  config.max_slots = 600;
  Host host(config);
  for (std::uint32_t i = 0; i < 500; ++i)
    host.vm("u" + std::to_string(i), host.start_untraced(1000 + i), "p");
  host.tick(1s);
  REQUIRE(host.in_state(EpochState::attributed).size() == 500);
  REQUIRE(host.registry.stats().slots_spare == 3);
}

TEST_CASE("a claim of a process that is gone comes to nothing") {
  Host host;
  const core::ProcessKey process{100, 7};
  host.vm("u1", process, "p1");
  REQUIRE(host.registry.epochs().empty());
  host.log.clear();
  host.tick(1s);
  REQUIRE(host.log.empty());
  host.vm("u1", process, "p1");
  REQUIRE(host.all<Claim>().empty());  // gone is gone
}

TEST_CASE("probes and containers are discarded without an alert") {
  Host host;
  const auto probe = host.start(100, ProcessHint{{}, {}, true, false});
  const auto container = host.start(101, ProcessHint{{}, {}, false, true});
  REQUIRE(host.registry.epochs().empty());
  REQUIRE(host.all<Discard>().size() == 2);
  REQUIRE(host.registry.stats().probes_discarded == 1);
  REQUIRE(host.registry.stats().containers_discarded == 1);
  host.exit(probe);
  host.exit(container);
  host.tick(100s);
  REQUIRE(host.registry.stats().unattributed_epochs == 0);
  REQUIRE(host.registry.stats().slots_in_use == 0);
  REQUIRE(host.registry.stats().slots_spare == 3);
}

TEST_CASE("a hint that comes with a repeated event is heeded too") {
  Host host;
  const auto process = host.start(100);
  const auto identity = host.epoch(process).slot;
  host.apply(host.registry.on_claimed(process, identity, "q", ProcessHint{{}, {}, true, false}, host.now));
  REQUIRE(host.all<Discard>().size() == 1);
  host.log.clear();
  host.apply(host.registry.on_claimed(process, identity, "q", ProcessHint{{}, {}, true, false}, host.now));
  REQUIRE(host.log.empty());
  REQUIRE(host.registry.epochs().empty());
}

TEST_CASE("libvirt's word counts more than the looks of a process") {
  Host host;
  const auto process = host.start(100, ProcessHint{{}, {}, false, true});
  host.vm("u1", process, "p1");  // libvirt runs in a container itself
  REQUIRE(host.epoch(process).state == EpochState::attributed);
}

TEST_CASE(
    "a VM that runs unnamed past the deadline is the operator's, and can be adopted later without loss") {
  Host host;
  const auto process = host.start(100);
  host.kernel.work(process, 5);
  host.tick(59s);
  REQUIRE(host.epoch(process).state == EpochState::unnamed);
  host.tick(2s);
  const Epoch before = host.epoch(process);
  REQUIRE(before.state == EpochState::unattributed);
  REQUIRE(before.id == epoch_id("boot", {}, process, {}));
  REQUIRE(before.tenant.value.empty());
  REQUIRE(host.registry.stats().unattributed_epochs == 1);
  host.tick(100s);
  REQUIRE(host.registry.stats().unattributed_epochs == 1);

  host.vm("u1", process, "p1");
  const Epoch& after = host.epoch(process);
  REQUIRE(after.state == EpochState::attributed);
  REQUIRE(after.serial == before.serial);
  REQUIRE(after.slot == before.slot);
  REQUIRE(after.start_unix_ns == before.start_unix_ns);
  REQUIRE(after.former_id == before.id);
  REQUIRE(after.id == epoch_id("boot", {"u1"}, process, {"p1"}));
  host.exit(process);
  host.tick(3s);
  REQUIRE(host.drained.at(after.serial) == 5);
}

TEST_CASE("a VM named by libvirt without an owner waits for metadata until the deadline, and after it") {
  Host host;
  const auto process = host.start(100);
  host.log.clear();
  host.vm("u1", process);
  REQUIRE(host.epoch(process).state == EpochState::unnamed);
  REQUIRE(host.epoch(process).facts->uuid.value == "u1");
  REQUIRE(host.all<BindTasks>().size() == 1);  // its tasks and disks are known, whoever owns them
  REQUIRE(host.all<NumberDisks>().size() == 1);
  REQUIRE(host.all<SetTenant>().empty());

  SECTION("in time") {
    host.tick(30s);
    host.vm("u1", process, "p1");
    REQUIRE(host.epoch(process).former_id.value.empty());
    REQUIRE(host.registry.stats().unattributed_epochs == 0);
  }
  SECTION("late") {
    host.tick(61s);
    REQUIRE(host.epoch(process).state == EpochState::unattributed);
    REQUIRE(host.epoch(process).id == epoch_id("boot", {"u1"}, process, {}));
    host.vm("u1", process, "p1");
    REQUIRE_FALSE(host.epoch(process).former_id.value.empty());
  }
  REQUIRE(host.epoch(process).state == EpochState::attributed);
  REQUIRE(host.all<BindTasks>().size() == 1);
}

TEST_CASE("a VM that ended unnamed gives its slot back and keeps its counts for libvirt's word") {
  Host host;
  const auto process = host.start(100);
  host.kernel.work(process, 7);
  host.exit(process);
  const Epoch draining = host.epoch(process);
  REQUIRE(draining.state == EpochState::draining);
  REQUIRE(draining.end_unix_ns == host.now.unix_ns);
  host.tick(1s);
  REQUIRE(host.all<Retire>().empty());
  host.tick(1s);
  REQUIRE(host.all<Unbind>().size() == 1);
  REQUIRE(host.all<Retire>().size() == 1);
  REQUIRE(host.registry.stats().slots_in_use == 0);
  REQUIRE(host.drained.at(draining.serial) == 7);
  REQUIRE(host.epoch(process).state == EpochState::draining);
  REQUIRE(host.registry.by_slot(draining.slot)->serial == draining.serial);

  SECTION("which comes in time") {
    host.tick(30s);
    host.log.clear();
    host.vm("u1", process, "p1");
    REQUIRE(host.all<Claim>().empty());
    REQUIRE(host.all<SetTenant>().empty());
    const auto closed = host.in_state(EpochState::closed);
    REQUIRE(closed.size() == 1);
    REQUIRE(closed[0]->tenant.value == "p1");
    REQUIRE(closed[0]->slot == core::SlotIdentity{});
    REQUIRE(closed[0]->end_unix_ns == draining.end_unix_ns);
    REQUIRE(host.registry.stats().unattributed_epochs == 0);
  }
  SECTION("which names no owner") {
    host.vm("u1", process);
    host.tick(60s);
    REQUIRE(host.in_state(EpochState::closed).at(0)->tenant.value.empty());
  }
  SECTION("which never comes") {
    host.tick(60s);
    const auto closed = host.in_state(EpochState::closed);
    REQUIRE(closed.size() == 1);
    REQUIRE(closed[0]->tenant.value.empty());
    REQUIRE(closed[0]->id == epoch_id("boot", {}, process, {}));
    REQUIRE(host.registry.stats().unattributed_epochs == 1);
    host.vm("u1", process, "p1");  // too late: what is closed is final
    REQUIRE(host.in_state(EpochState::closed).at(0)->tenant.value.empty());
    REQUIRE(host.registry.epochs().size() == 1);
  }
}

TEST_CASE("the command line lets a static rule attribute a VM of which libvirt never spoke") {
  RegistryConfig config = small_config();
  config.rules = {{"u1", "", {"by-uuid"}}, {"", "web-*", {"by-name"}}};
  Host host(config);
  const auto running = host.start(100, ProcessHint{{"u1"}, "x", false, false});
  const auto ended = host.start(101, ProcessHint{{"u2"}, "web-1", false, false});
  host.exit(ended);
  host.tick(5s);
  REQUIRE(host.epoch(running).state == EpochState::unnamed);  // libvirt may know better
  host.tick(60s);
  REQUIRE(host.epoch(running).state == EpochState::attributed);
  REQUIRE(host.epoch(running).tenant.value == "by-uuid");
  REQUIRE(host.epoch(running).tenancy_source == "rule");
  const auto closed = host.in_state(EpochState::closed);
  REQUIRE(closed.size() == 1);
  REQUIRE(closed[0]->tenant.value == "by-name");
  REQUIRE(host.registry.stats().unattributed_epochs == 0);
}

TEST_CASE("facts that another command line contradicts are not believed") {
  Host host;
  const auto process = host.start(100, ProcessHint{{"u1"}, "x", false, false});
  host.vm("u2", process, "p2");
  REQUIRE(host.epoch(process).tenant.value.empty());
  host.vm("u1", process, "p1");
  REQUIRE(host.epoch(process).tenant.value == "p1");
  host.vm("u2", process, "p2");
  host.tick(1s);
  REQUIRE(host.epoch(process).tenant.value == "p1");

  const auto silent = host.start(101);  // no command line: the first word stands
  host.vm("u3", silent, "p1");
  host.vm("u4", silent, "p2");
  host.tick(1s);
  REQUIRE(host.epoch(silent).tenant.value == "p1");
}

TEST_CASE("a command line that is read later takes back facts that were another's") {
  Host host;
  const auto process = host.start_untraced(100);
  const auto wrong = host.registry.on_vm(host.facts("u2", process, "p2"), host.now);
  REQUIRE(wrong.size() == 1);
  const auto identity = *host.kernel.claim(process);
  host.apply(
      host.registry.on_claimed(process, identity, "", ProcessHint{{"u1"}, "x", false, false}, host.now));
  REQUIRE(host.epoch(process).state == EpochState::unnamed);
  host.vm("u1", process, "p1");
  REQUIRE(host.epoch(process).tenant.value == "p1");
}

TEST_CASE("an attributed VM ends by either event, both, in any order, and repeated") {
  Host host;
  const auto process = host.start(100);
  host.vm("u1", process, "p1");
  const auto serial = host.epoch(process).serial;
  host.kernel.work(process, 3);
  const auto order = GENERATE(0, 1, 2, 3, 4);
  CAPTURE(order);
  if (order == 1 || order == 2) host.gone("u1", process);
  if (order != 1) host.exit(process);
  if (order == 3 || order == 4) host.gone("u1", process);
  const auto end = host.epoch(process).end_unix_ns;
  REQUIRE(end == host.now.unix_ns);
  host.tick(1s);
  if (order == 4) {
    host.exit(process);
    host.gone("u1", process);
  }
  REQUIRE(host.epoch(process).end_unix_ns == end);
  REQUIRE(host.epoch(process).state == EpochState::draining);
  host.kernel.work(process, 1);  // was in flight
  host.tick(1s);
  const auto closed = host.in_state(EpochState::closed);
  REQUIRE(closed.size() == 1);
  REQUIRE(host.drained.at(serial) == 4);
  REQUIRE(host.registry.by_serial(serial) == closed[0]);
  if (order == 4) host.exit(process);
  host.tick(10s);
  REQUIRE(host.all<Retire>().size() == 1);
  host.registry.forget(serial);
  REQUIRE(host.registry.epochs().empty());
  REQUIRE(host.registry.tenants().empty());
  REQUIRE(host.all<RemoveTenant>().empty());
  host.tick();
  REQUIRE(host.all<RemoveTenant>().size() == 1);
}

TEST_CASE("only closed epochs can be forgotten") {
  Host host;
  const auto process = host.start(100);
  host.vm("u1", process, "p1");
  host.registry.forget(host.epoch(process).serial);
  REQUIRE(host.epoch(process).state == EpochState::attributed);
  host.registry.forget(12'345);
  REQUIRE(host.registry.epochs().size() == 1);
}

TEST_CASE("exits and departures of strangers are ignored") {
  Host host;
  host.log.clear();
  host.exit({4711, 1});
  host.gone("u9", {4712, 1});
  REQUIRE(host.registry.epochs().empty());
  host.tick(100s);
  REQUIRE(host.log.empty());
}

TEST_CASE("a claim that is heard of after the exit is accounted and ends") {
  Host host;
  const core::ProcessKey process{100, host.ticks()};
  const auto identity = host.kernel.exec(process);
  host.kernel.work(process, 9);
  host.exit(process);
  host.vm("u1", process, "p1");
  REQUIRE(host.all<Claim>().empty());
  host.apply(host.registry.on_claimed(process, identity, "q", std::nullopt, host.now));
  REQUIRE(host.epoch(process).state == EpochState::draining);
  REQUIRE(host.epoch(process).tenant.value == "p1");
  const auto serial = host.epoch(process).serial;
  host.tick(3s);
  REQUIRE(host.drained.at(serial) == 9);
  REQUIRE(host.registry.stats().slots_in_use == 0);
}

TEST_CASE("a VM restarted under the same UUID is another epoch, whatever the order of events") {
  Host host;
  const auto before = host.start(100);
  host.vm("u1", before, "p1");
  const auto after = host.start(101);

  SECTION("the departure first") {
    host.gone("u1", before);
    host.vm("u1", after, "p1");
  }
  SECTION("the departure last, twice") {
    host.vm("u1", after, "p1");
    REQUIRE(host.epoch(before).state == EpochState::draining);
    host.gone("u1", before);
    host.gone("u1", before);
  }
  SECTION("an old sighting in between") {
    host.vm("u1", after, "p1");
    host.vm("u1", before, "p1");
  }
  SECTION("the old process is first heard of when it is over") {
    host.vm("u1", after, "p1");
    host.vm("u1", {55, 3}, "p1");
    REQUIRE(host.all<Claim>().empty());
  }
  REQUIRE(host.epoch(before).state == EpochState::draining);
  REQUIRE(host.epoch(after).state == EpochState::attributed);
  REQUIRE(host.epoch(before).id != host.epoch(after).id);
  host.tick(3s);
  REQUIRE(host.epoch(after).state == EpochState::attributed);
  REQUIRE(host.in_state(EpochState::closed).size() == 1);
}

TEST_CASE("a process that reuses the id of a dead one is not taken for it") {
  Host host;
  const auto dead = host.start(100);
  host.vm("u1", dead, "p1");
  host.exit(dead);
  const auto living = host.start(100);
  host.gone("u1", dead);
  host.vm("u1", dead, "p1");
  REQUIRE(host.epoch(living).state == EpochState::unnamed);
  host.vm("u2", living, "p2");
  REQUIRE(host.epoch(living).tenant.value == "p2");
  REQUIRE(host.epoch(dead).tenant.value == "p1");
  host.tick(3s);
  REQUIRE(host.epoch(living).state == EpochState::attributed);
}

TEST_CASE("two domains of one name are two VMs") {
  Host host;
  const auto first = host.start(100);
  const auto second = host.start(101);
  for (const auto& [uuid, process, project] :
       {std::tuple{"u1", first, "p1"}, std::tuple{"u2", second, "p2"}}) {
    core::VmFacts facts = host.facts(uuid, process, project);
    facts.name = "twin";
    host.vm(facts);
  }
  REQUIRE(host.epoch(first).tenant.value == "p1");
  REQUIRE(host.epoch(second).tenant.value == "p2");
  host.gone("u1", first);
  REQUIRE(host.epoch(second).state == EpochState::attributed);
}

TEST_CASE("a departure that libvirt takes back does not end the VM") {
  Host host;
  const auto process = host.start(100);
  host.vm("u1", process, "p1");
  const auto serial = host.epoch(process).serial;
  host.gone("u1", process);
  host.log.clear();

  SECTION("before its slot was retired it goes on in it") {
    host.tick(1s);
    host.vm("u1", process, "p1");
    REQUIRE(host.epoch(process).serial == serial);
    REQUIRE(host.epoch(process).end_unix_ns == 0);
    REQUIRE(host.epoch(process).state == EpochState::attributed);
    host.tick(10s);
    REQUIRE(host.all<Retire>().empty());
  }
  SECTION("after that it is claimed anew, under an id of its own") {
    host.tick(3s);
    REQUIRE(host.in_state(EpochState::closed).size() == 1);
    host.vm("u1", process, "p1");
    REQUIRE(host.epoch(process).serial != serial);
    REQUIRE(host.epoch(process).id == epoch_id("boot", {"u1"}, process, {"p1"}, 1));
  }
  SECTION("but the kernel's word is final") {
    host.exit(process);
    host.vm("u1", process, "p1");
    REQUIRE(host.epoch(process).state == EpochState::draining);
  }
}

TEST_CASE("an unnamed VM that libvirt mistook for gone keeps its first counts too") {
  Host host;
  const auto process = host.start(100);
  host.vm("u1", process);
  host.kernel.work(process, 5);
  host.gone("u1", process);
  host.tick(3s);
  const auto serial = host.epoch(process).serial;
  host.vm("u1", process, "p1");
  REQUIRE(host.in_state(EpochState::closed).at(0)->serial == serial);
  REQUIRE(host.in_state(EpochState::closed).at(0)->tenant.value == "p1");
  REQUIRE(host.epoch(process).serial != serial);
  REQUIRE(host.epoch(process).state == EpochState::attributed);
}

TEST_CASE("whatever a VM counted before anybody was named is the first owner's, in however many slots") {
  Host host;
  const auto process = host.start(100);
  host.vm("u1", process);
  host.gone("u1", process);
  host.tick(3s);
  host.vm("u1", process);  // claimed anew, still without an owner
  REQUIRE(host.registry.epochs().size() == 2);
  host.vm("u1", process, "p1");
  for (const Epoch* epoch : host.registry.epochs()) REQUIRE(epoch->tenant.value == "p1");
  REQUIRE(host.in_state(EpochState::closed).size() == 1);
}

TEST_CASE("a slot is never believed to be in two hands") {
  Host host;
  const auto owner = host.start(100);
  host.vm("u1", owner, "p1");
  const auto slot = host.epoch(owner).slot;
  host.log.clear();
  host.apply(host.registry.on_claimed({200, 1}, slot, "q", std::nullopt, host.now));
  host.apply(host.registry.on_rebound({201, 1}, slot, host.now));
  host.apply(host.registry.on_claimed({202, 1}, {slot.slot, {slot.generation.value + 900}}, "q", std::nullopt,
                                      host.now));
  host.apply(host.registry.on_claimed({203, 1}, {{0}, {1}}, "q", std::nullopt, host.now));
  host.apply(host.registry.on_claimed({204, 1}, {{4000}, {2}}, "q", std::nullopt, host.now));
  REQUIRE(host.log.empty());
  REQUIRE(host.registry.epochs().size() == 1);
  REQUIRE(host.registry.by_slot(slot)->process == owner);
}

TEST_CASE("a slot is free again only after it is retired, and nothing of it is believed in between") {
  RegistryConfig config = small_config();
  config.max_slots = 4;
  config.spare_slots = 3;
  Host host(config);
  const auto process = host.start(100);
  host.vm("u1", process, "p1");
  const auto slot = host.epoch(process).slot;
  host.exit(process);
  host.hold_retired = true;
  host.log.clear();
  host.tick(3s);
  REQUIRE(host.registry.stats().slots_retiring == 1);
  REQUIRE(host.all<InstallSpare>().empty());
  host.apply(host.registry.on_claimed({300, 1}, slot, "q", std::nullopt, host.now));
  REQUIRE(host.registry.by_process({300, 1}) == nullptr);
  host.release_retired();
  REQUIRE(host.all<InstallSpare>().size() == 1);
  REQUIRE(host.all<InstallSpare>()[0].identity.slot == slot.slot);
  REQUIRE(host.registry.on_retired(slot, host.now).empty());
  REQUIRE(host.in_state(EpochState::closed).size() == 1);  // its streams may take their time
}

TEST_CASE("maps grow with the VM's disks, up to the quota, one step at a time") {
  RegistryConfig config = small_config();
  config.default_quota.disks_per_vm = 8;
  Host host(config);
  const auto process = host.start(100);
  core::VmFacts facts = host.facts("u1", process, "p1");
  const auto with_disks = [&facts](std::size_t count) {
    facts.disks.clear();
    for (std::size_t i = 0; i < count; ++i) facts.disks.push_back(disk("vd" + std::to_string(i)));
    core::Disk cdrom;
    cdrom.target = "sda";
    facts.disks.push_back(cdrom);  // invisible: needs no row
  };
  host.log.clear();
  with_disks(3);  // and "other": the four rows of a spare do
  host.vm(facts);
  REQUIRE(host.all<Grow>().empty());
  REQUIRE(host.all<NumberDisks>().back().disks.size() == 3);

  with_disks(4);
  host.vm(facts);
  REQUIRE(host.all<Grow>().back().shape.disks == 5);
  REQUIRE(host.all<NumberDisks>().size() == 2);

  host.fail_growth = true;
  with_disks(20);
  host.vm(facts);
  REQUIRE(host.all<Grow>().back().shape.disks == 8);
  REQUIRE(host.all<Grow>().size() == 2);
  host.fail_growth = false;
  host.tick(1s);
  REQUIRE(host.all<Grow>().size() == 3);  // tried again
  host.tick(1s);
  REQUIRE(host.all<Grow>().size() == 3);

  with_disks(1);
  host.vm(facts);
  REQUIRE(host.all<Grow>().size() == 3);
  config.default_quota.disks_per_vm = 16;
  with_disks(12);
  host.vm(facts);
  host.reconfigure(config);
  REQUIRE(host.all<Grow>().back().shape.disks == 13);
}

TEST_CASE("maps grow with the VM's vCPUs, those that may come too, up to the quota") {
  RegistryConfig config = small_config();
  config.default_quota.vcpus_per_vm = 16;
  config.default_quota.nics_per_vm = 5;
  Host host(config);
  const auto process = host.start(100);
  core::VmFacts facts = host.facts("u1", process, "p1");
  host.log.clear();
  facts.vcpus = facts.max_vcpus = 4;  // and "other": the five rows of a spare do
  host.vm(facts);
  REQUIRE(host.all<Grow>().empty());
  facts.max_vcpus = 8;
  host.vm(facts);
  REQUIRE(host.all<Grow>().back().shape == core::SlotShape{.disks = 4, .vcpus = 9});
  facts.max_vcpus = 300;
  host.vm(facts);
  REQUIRE(host.all<Grow>().back().shape.vcpus == 16);
  REQUIRE(host.all<Grow>().size() == 2);

  facts.nics = {{.tap = "vnet0", .netns = 1, .ifindex = 7}, {.invisible_reason = "no tap"}};
  host.vm(facts);
  REQUIRE(host.all<NumberNics>().size() == 1);
  REQUIRE(host.all<NumberNics>().back().nics == std::vector<core::Nic>{facts.nics[0]});
  REQUIRE(host.all<Grow>().back().shape.nics == 3);  // a spare has room for two, and the others
  for (std::uint32_t index = 8; index < 12; ++index)
    facts.nics.push_back({.tap = "vnet", .netns = 1, .ifindex = index});
  host.vm(facts);
  REQUIRE(host.all<Grow>().back().shape.nics == 5);
}

TEST_CASE("a slot that grows is not retired before it has grown") {
  Host host;
  const auto process = host.start(100);
  core::VmFacts facts = host.facts("u1", process, "p1");
  facts.disks.assign(6, disk("vdx"));
  const auto actions = host.registry.on_vm(facts, host.now);
  REQUIRE(std::get<Grow>(actions.back()).shape.disks == 7);
  host.registry.on_process_exit(process, host.now);
  host.advance(5s);
  REQUIRE(host.registry.tick(host.now).empty());
  const auto slot = host.epoch(process).slot;
  REQUIRE(host.registry.on_grown(slot, true, host.now).empty());
  REQUIRE(host.registry.on_grown(slot, true, host.now).empty());
  const auto retire = host.registry.tick(host.now);
  REQUIRE(retire.size() == 2);
  REQUIRE(std::get<Unbind>(retire[0]).process == process);
  REQUIRE(std::get<Retire>(retire[1]).identity == slot);
}

TEST_CASE("tasks are bound again when cgroups or helpers change, disks numbered again when they do") {
  Host host;
  const auto process = host.start(100);
  core::VmFacts facts = host.facts("u1", process, "p1");
  host.vm(facts);
  host.log.clear();
  facts.cgroup_ids.push_back(77);
  host.vm(facts);
  REQUIRE(host.log.size() == 1);
  REQUIRE(std::get<BindTasks>(host.log[0]).cgroup_ids.back() == 77);
  facts.helpers.push_back({500, 1});
  host.vm(facts);
  REQUIRE(std::get<BindTasks>(host.log[1]).helpers.size() == 1);
  facts.disks[0].inode = 5;
  host.vm(facts);
  REQUIRE(host.log.size() == 3);
  REQUIRE(std::get<NumberDisks>(host.log[2]).disks[0].inode == 5);
  facts.name = "renamed";
  host.vm(facts);
  REQUIRE(host.log.size() == 3);
  REQUIRE(host.epoch(process).facts->name == "renamed");
}

TEST_CASE("facts without a process are not a VM") {
  Host host;
  host.log.clear();
  host.vm("u1", {}, "p1");
  REQUIRE(host.log.empty());
  REQUIRE(host.registry.epochs().empty());
}

TEST_CASE("a pool configured to hold nothing still lets VMs in") {
  RegistryConfig config = small_config();
  config.spare_slots = 0;
  Host host(config);
  const auto process = host.start_untraced(100);
  host.vm("u1", process, "p1");
  REQUIRE(host.epoch(process).state == EpochState::attributed);
}

}  // namespace
}  // namespace kvmscope::tenancy::testing
