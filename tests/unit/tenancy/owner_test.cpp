// SPDX-License-Identifier: Apache-2.0
// Change of owner, quotas, and both by a new configuration.
#include "tests/unit/tenancy/host.h"

namespace kvmscope::tenancy::testing {
namespace {

TEST_CASE("a change of owner goes to a new slot and a new epoch; what was counted stays where it was") {
  Host host;
  const auto process = host.start(100);
  host.vm("u1", process, "a");
  const Epoch first = host.epoch(process);
  host.kernel.work(process, 10);
  host.advance(5s);
  host.log.clear();
  core::VmFacts facts = host.facts("u1", process, "b");
  facts.nova->user_name = "user of b";
  host.vm(facts);

  const Epoch second = host.epoch(process);
  REQUIRE(std::get<Rebind>(host.log[0]).process == process);
  REQUIRE(host.all<BindTasks>().size() == 1);
  REQUIRE(host.all<NumberDisks>().at(0).identity == second.slot);
  REQUIRE(host.all<SetTenant>().at(0).identity == second.slot);
  REQUIRE(second.slot.generation != first.slot.generation);
  REQUIRE(second.state == EpochState::attributed);
  REQUIRE(second.tenant.value == "b");
  REQUIRE(second.start_unix_ns == host.now.unix_ns);
  REQUIRE(second.id == epoch_id("boot", {"u1"}, process, {"b"}));
  const Epoch* old = host.registry.by_serial(first.serial);
  REQUIRE(old->state == EpochState::draining);
  REQUIRE(old->tenant.value == "a");
  REQUIRE(old->end_unix_ns == host.now.unix_ns);
  REQUIRE(old->facts->nova->project_id == "a");  // b's names are not for a
  REQUIRE(old->facts->nova->user_name.empty());

  host.kernel.find(first.slot).work += 1;  // was in flight
  host.kernel.work(process, 20);
  host.tick(1s);
  REQUIRE(host.all<Retire>().empty());
  host.tick(1s);
  REQUIRE(host.all<Retire>().at(0).identity == first.slot);
  REQUIRE(host.all<Unbind>().empty());  // the process lives on in its new slot
  REQUIRE(host.drained.at(first.serial) == 11);
  host.exit(process);
  host.tick(3s);
  REQUIRE(host.drained.at(second.serial) == 20);
  REQUIRE(host.all<Unbind>().size() == 1);
}

TEST_CASE("an owner who comes back gets an epoch of a new id") {
  Host host;
  const auto process = host.start(100);
  std::vector<std::uint64_t> serials;
  for (const char* owner : {"a", "b", "a"}) {
    host.vm("u1", process, owner);
    serials.push_back(host.epoch(process).serial);
    host.tick(3s);
  }
  REQUIRE(host.epoch(process).id == epoch_id("boot", {"u1"}, process, {"a"}, 1));
  REQUIRE(host.in_state(EpochState::closed).size() == 2);
  host.registry.forget(serials[0]);
  REQUIRE(host.epoch(process).state == EpochState::attributed);
}

TEST_CASE("an owner that vanishes is not a change of owner") {
  Host host;
  const auto process = host.start(100);
  host.vm("u1", process, "a");
  const auto id = host.epoch(process).id;
  host.vm("u1", process);
  REQUIRE(host.epoch(process).tenant.value == "a");
  REQUIRE(host.epoch(process).id == id);
  REQUIRE(host.epoch(process).owner_vanished);
  host.vm("u1", process, "a");
  REQUIRE_FALSE(host.epoch(process).owner_vanished);
  REQUIRE(host.all<Rebind>().empty());
}

TEST_CASE("the same owner by another source is no change") {
  Host host;
  const auto process = host.start(100);
  host.vm("u1", process, "a");
  core::VmFacts facts = host.facts("u1", process);
  facts.own = core::OwnMetadata{"a", {}};
  host.vm(facts);
  REQUIRE(host.epoch(process).tenancy_source == "own_metadata");
  REQUIRE(host.all<Rebind>().empty());
}

TEST_CASE("without a spare the change waits a little, then the former owner counts no more") {
  RegistryConfig config = small_config();
  config.max_slots = 4;
  config.spare_slots = 1;
  Host host(config);
  const auto process = host.start(100);
  host.start(101);
  host.start(102);  // all three slots are taken
  host.vm("u1", process, "a");
  const Epoch first = host.epoch(process);
  host.log.clear();
  host.vm("u1", process, "b");
  REQUIRE(host.all<Rebind>().size() == 1);
  REQUIRE(host.registry.stats().claims_failed == 1);
  REQUIRE(host.epoch(process).tenant.value == "a");
  REQUIRE(host.epoch(process).facts->nova->project_id == "a");

  SECTION("the owner comes back") {
    host.tick(1s);
    host.vm("u1", process, "a");
    host.tick(10s);
    REQUIRE(host.epoch(process).serial == first.serial);
    REQUIRE(host.epoch(process).state == EpochState::attributed);
    REQUIRE(host.all<Unbind>().empty());
  }
  SECTION("none does: its own slot becomes the spare") {
    host.tick(2s);
    REQUIRE(host.all<Unbind>().size() == 1);
    REQUIRE(host.registry.by_process(process) == nullptr);
    REQUIRE_FALSE(host.kernel.work(process, 5));  // nobody's
    host.tick(1s);
    host.tick(1s);
    REQUIRE(host.all<Retire>().at(0).identity == first.slot);
    REQUIRE(host.epoch(process).tenant.value == "b");
    REQUIRE(host.epoch(process).slot.slot == first.slot.slot);
    REQUIRE(host.epoch(process).start_unix_ns == host.now.unix_ns);
    REQUIRE(host.drained.at(first.serial) == 0);
  }
}

TEST_CASE("a refused change is made as soon as there is a spare") {
  RegistryConfig config = small_config();
  config.max_slots = 3;
  config.spare_slots = 1;
  Host host(config);
  const auto process = host.start(100);
  const auto other = host.start(101);
  host.vm("u1", process, "a");
  const Epoch first = host.epoch(process);
  host.exit(other);
  host.tick(1s);
  host.vm("u1", process, "b");
  host.advance(500ms);
  host.vm("u1", process, "b");
  REQUIRE(host.all<Rebind>().size() == 1);
  REQUIRE(host.epoch(process).tenant.value == "a");
  host.kernel.work(process, 3);
  host.tick(500ms);  // the other's slot is free
  REQUIRE(host.all<Rebind>().size() == 2);
  REQUIRE(host.epoch(process).tenant.value == "b");
  host.tick(3s);
  REQUIRE(host.drained.at(first.serial) == 3);  // counted before the switch
  REQUIRE(host.all<Unbind>().size() == 1);      // the other's
}

TEST_CASE("what happens while a rebind is under way") {
  Host host;
  const auto process = host.start(100);
  host.vm("u1", process, "a");
  const Epoch first = host.epoch(process);
  const auto asked = host.registry.on_vm(host.facts("u1", process, "b"), host.now);
  REQUIRE(asked.size() == 1);
  REQUIRE(host.registry.tick(host.now).empty());

  SECTION("the process exits: nothing is retired before the answer") {
    host.kernel.alive.erase(process);
    host.registry.on_process_exit(process, host.now);
    host.advance(10s);
    REQUIRE(host.registry.tick(host.now).empty());
    SECTION("it had moved") {
      const auto slot = host.kernel.take(process);
      host.apply(host.registry.on_rebound(process, slot, host.now));
      REQUIRE(host.epoch(process).slot == slot);
      REQUIRE(host.epoch(process).state == EpochState::draining);
      host.tick(3s);
      REQUIRE(host.in_state(EpochState::closed).size() == 2);
    }
    SECTION("it had not") {
      host.apply(host.registry.on_claim_failed(process, {core::ErrorCode::not_found, ""}, host.now));
      host.tick();
      REQUIRE(host.in_state(EpochState::closed).size() == 1);
    }
    REQUIRE(host.registry.stats().slots_in_use == 0);
  }
  SECTION("the owner changes back: the switch is made all the same, for its old owner") {
    REQUIRE(host.registry.on_vm(host.facts("u1", process, "a"), host.now).empty());
    const auto slot = *host.kernel.rebind(process);
    host.apply(host.registry.on_rebound(process, slot, host.now));
    REQUIRE(host.epoch(process).tenant.value == "a");
    REQUIRE(host.epoch(process).serial != first.serial);
    REQUIRE(host.epoch(process).id != first.id);
  }
}

TEST_CASE("a late change does not touch a VM that has ended") {
  Host host;
  const auto process = host.start(100);
  host.vm("u1", process, "a");
  host.exit(process);
  host.vm("u1", process, "b");
  REQUIRE(host.epoch(process).tenant.value == "a");
  REQUIRE(host.epoch(process).facts->nova->project_id == "a");
  host.tick(3s);
  REQUIRE(host.all<Rebind>().empty());
  REQUIRE(host.in_state(EpochState::closed).at(0)->tenant.value == "a");
}

RegistryConfig with_slots(std::uint32_t slots) {
  RegistryConfig config = small_config();
  config.tenant_quotas[{"a"}] = Quota{.slots = slots};
  return config;
}

TEST_CASE("VMs beyond the quota are not traced; what they counted until then stays the tenant's") {
  Host host(with_slots(2));
  const auto first = host.start(100);
  const auto second = host.start(101);
  const auto third = host.start(102);
  host.kernel.work(third, 4);
  host.vm("u1", first, "a");
  host.vm("u2", second, "a");
  host.log.clear();
  host.vm("u3", third, "a");
  const Epoch over = host.epoch(third);
  REQUIRE(over.state == EpochState::over_quota);
  REQUIRE(over.tenant.value == "a");
  REQUIRE(over.slot == core::SlotIdentity{});
  REQUIRE(over.facts->uuid.value == "u3");
  REQUIRE(over.id.value.empty());
  REQUIRE(host.all<Unbind>().size() == 1);
  REQUIRE_FALSE(host.kernel.work(third, 1));
  REQUIRE(host.registry.stats().over_quota == 1);
  const auto draining = host.in_state(EpochState::draining);
  REQUIRE(draining.size() == 1);
  const auto serial = draining[0]->serial;
  REQUIRE(draining[0]->tenant.value == "a");
  host.tick(3s);
  REQUIRE(host.drained.at(serial) == 4);
  REQUIRE(host.in_state(EpochState::closed).at(0)->id == epoch_id("boot", {"u3"}, third, {"a"}));
  REQUIRE(host.all<Unbind>().size() == 1);

  SECTION("until another ends") {
    host.exit(first);
    host.tick(1s);
    REQUIRE(host.epoch(third).state == EpochState::attributed);
    REQUIRE(host.epoch(third).id == epoch_id("boot", {"u3"}, third, {"a"}, 1));
    REQUIRE(host.epoch(third).start_unix_ns == host.now.unix_ns);
    REQUIRE(host.in_state(EpochState::over_quota).empty());
  }
  SECTION("until the quota is raised") {
    host.reconfigure(with_slots(3));
    REQUIRE(host.epoch(third).state == EpochState::attributed);
  }
  SECTION("until it ends") {
    host.exit(third);
    REQUIRE(host.registry.by_process(third) == nullptr);
    REQUIRE(host.in_state(EpochState::over_quota).empty());
  }
  SECTION("until it is another's") {
    host.vm("u3", third, "b");
    REQUIRE(host.epoch(third).state == EpochState::attributed);
    REQUIRE(host.epoch(third).tenant.value == "b");
    REQUIRE(host.in_state(EpochState::over_quota).empty());
  }
  REQUIRE(host.epoch(second).state == EpochState::attributed);
  REQUIRE(host.registry.stats().over_quota == 1);
}

TEST_CASE("a VM that is over quota from the start gives its slot back at once, and asks no more") {
  Host host(with_slots(0));
  const auto process = host.start_untraced(100);
  host.vm("u1", process, "a");
  REQUIRE(host.all<Claim>().size() == 1);
  REQUIRE(host.all<Unbind>().size() == 1);
  REQUIRE(host.epoch(process).state == EpochState::over_quota);
  host.vm("u1", process, "a");
  host.tick(1s);
  host.tick(3s);
  REQUIRE(host.all<Claim>().size() == 1);
  REQUIRE(host.registry.stats().over_quota == 1);
  REQUIRE(host.registry.stats().slots_in_use == 0);
  REQUIRE(host.registry.tenants().size() == 1);
}

TEST_CASE("what the kernel counted unheard for an owner beyond his quota is not the next owner's") {
  Host host(with_slots(0));
  const core::ProcessKey process{100, host.ticks()};
  const auto slot = host.kernel.exec(process);  // the event is lost
  host.kernel.work(process, 5);
  host.vm("u1", process, "a");
  const auto serial = host.registry.by_slot(slot)->serial;
  host.vm("u1", process, "b");
  REQUIRE(host.epoch(process).tenant.value == "b");
  REQUIRE(host.epoch(process).slot != slot);
  host.tick(3s);
  REQUIRE(host.drained.at(serial) == 5);
  REQUIRE(host.in_state(EpochState::closed).at(0)->tenant.value == "a");
}

TEST_CASE("an owner named while the claim was under way comes second") {
  Host host;
  const core::ProcessKey process{100, host.ticks()};
  const auto slot = host.kernel.exec(process);  // the event is late
  host.registry.on_vm(host.facts("u1", process, "a"), host.now);
  host.registry.on_vm(host.facts("u1", process, "b"), host.now);
  host.apply(host.registry.on_claimed(process, slot, "", std::nullopt, host.now));
  REQUIRE(host.registry.by_slot(slot)->tenant.value == "a");
  REQUIRE(host.epoch(process).tenant.value == "b");
}

TEST_CASE("claims under way count against the quota") {
  Host host(with_slots(0));
  const auto first = host.start(100);
  const auto second = host.start(101);
  host.vm("u1", first, "a");
  host.vm("u2", second, "a");
  const Actions actions = host.registry.reconfigure(with_slots(1), host.now);
  REQUIRE(actions.size() == 1);
  REQUIRE(std::get<Claim>(actions[0]).process == first);
  REQUIRE(host.registry.tick(host.now).empty());
}

TEST_CASE("a reboot does not push a VM over its own quota") {
  Host host(with_slots(1));
  const auto before = host.start(100);
  host.vm("u1", before, "a");
  const auto after = host.start(101);
  host.vm("u1", after, "a");
  REQUIRE(host.epoch(after).state == EpochState::attributed);
}

TEST_CASE("a VM taken back into a quota that was filled meanwhile is over it") {
  Host host(with_slots(1));
  const auto first = host.start(100);
  host.vm("u1", first, "a");
  host.gone("u1", first);
  const auto second = host.start(101);
  host.vm("u2", second, "a");
  host.vm("u1", first, "a");
  REQUIRE(host.epoch(first).state == EpochState::over_quota);
  REQUIRE(host.epoch(second).state == EpochState::attributed);
}

TEST_CASE("a VM handed to a tenant whose quota is used up leaves the former owner at once") {
  Host host(with_slots(0));
  const auto process = host.start(100);
  host.vm("u1", process, "b");
  host.log.clear();
  host.vm("u1", process, "a");
  REQUIRE(host.all<Rebind>().empty());
  REQUIRE(host.all<Unbind>().size() == 1);
  REQUIRE(host.epoch(process).state == EpochState::over_quota);
  REQUIRE(host.epoch(process).tenant.value == "a");
  REQUIRE(host.in_state(EpochState::draining).at(0)->tenant.value == "b");
}

TEST_CASE("a lowered quota takes the youngest VMs, a raised one brings them back") {
  Host host(with_slots(3));
  std::vector<core::ProcessKey> vms;
  for (const std::uint32_t tgid : {300U, 200U, 100U}) {
    vms.push_back(host.start(tgid));
    host.vm("u" + std::to_string(tgid), vms.back(), "a");
  }
  host.reconfigure(with_slots(1));
  REQUIRE(host.epoch(vms[0]).state == EpochState::attributed);
  REQUIRE(host.epoch(vms[1]).state == EpochState::over_quota);
  REQUIRE(host.epoch(vms[2]).state == EpochState::over_quota);
  host.reconfigure(with_slots(2));
  REQUIRE(host.epoch(vms[1]).state == EpochState::attributed);
  REQUIRE(host.epoch(vms[2]).state == EpochState::over_quota);
}

TEST_CASE("new rules change owners live") {
  RegistryConfig config = small_config();
  config.rules = {{"", "name-of-u1", {"a"}}};
  Host host(config);
  const auto first = host.start(100);
  const auto second = host.start(101);
  const auto hinted = host.start(102, ProcessHint{{"u3"}, "name-of-u3", false, false});
  host.vm("u1", first);
  host.vm("u2", second);
  host.tick(61s);
  REQUIRE(host.epoch(first).tenant.value == "a");
  REQUIRE(host.epoch(second).state == EpochState::unattributed);
  REQUIRE(host.epoch(hinted).state == EpochState::unattributed);

  config.rules = {{"", "name-of-*", {"b"}}};
  host.reconfigure(config);
  REQUIRE(host.epoch(first).tenant.value == "b");
  REQUIRE(host.all<Rebind>().size() == 1);
  REQUIRE(host.epoch(second).tenant.value == "b");
  REQUIRE(host.epoch(hinted).tenant.value == "b");

  config.rules = {};
  host.reconfigure(config);  // vanished, not changed
  REQUIRE(host.epoch(first).tenant.value == "b");
  REQUIRE(host.epoch(first).owner_vanished);
}

TEST_CASE("a new configuration does not move what the kernel side was set up with") {
  Host host;
  RegistryConfig config = small_config();
  config.boot_id = "another";
  config.max_slots = 100;
  config.spare_slots = 5;
  host.reconfigure(config);
  REQUIRE(host.registry.stats().slots_spare == 5);
  REQUIRE(host.registry.stats().slots_total == 11);
  const auto process = host.start(100);
  host.vm("u1", process, "a");
  REQUIRE(host.epoch(process).id == epoch_id("boot", {"u1"}, process, {"a"}));
}

TEST_CASE("a VM of a tenant for whom there is no ring waits, unattributed, until there is one") {
  Host host;  // room for three tenants
  std::vector<core::ProcessKey> vms;
  for (std::uint32_t i = 0; i < 4; ++i) {
    vms.push_back(host.start(100 + i));
    host.vm("u" + std::to_string(i), vms[i], "p" + std::to_string(i));
  }
  REQUIRE(host.epoch(vms[3]).state == EpochState::unnamed);
  host.tick(61s);
  REQUIRE(host.epoch(vms[3]).state == EpochState::unattributed);
  const auto serial = host.epoch(vms[0]).serial;
  host.exit(vms[0]);
  host.tick(3s);
  host.registry.forget(serial);
  host.tick();
  host.tick();
  REQUIRE(host.epoch(vms[3]).state == EpochState::attributed);
  REQUIRE(host.epoch(vms[3]).tenant_index == 1);
}

TEST_CASE("what was counted under an owner without a ring is never the next owner's") {
  RegistryConfig config = small_config();
  config.max_tenants = 2;
  Host host(config);
  const auto other = host.start(100);
  host.vm("u0", other, "other");
  const auto process = host.start(101);
  host.vm("u1", process, "a");
  const Epoch first = host.epoch(process);
  REQUIRE(first.tenant.value.empty());
  host.vm("u1", process, "other");
  REQUIRE(host.epoch(process).tenant.value == "other");
  REQUIRE(host.epoch(process).serial != first.serial);
  host.tick(100s);
  REQUIRE(host.registry.by_serial(first.serial)->id == epoch_id("boot", {"u1"}, process, {}));
}

TEST_CASE("at the daemon's stop whoever has no owner is unattributed, the living and the dead") {
  Host host;
  const auto lives = host.start(100);
  host.kernel.work(lives, 3);
  const auto dead = host.start(101);
  host.kernel.work(dead, 5);
  const std::uint64_t serial = host.epoch(dead).serial;
  host.exit(dead);
  host.tick(3s);
  const auto named = host.start(102);
  host.vm("u1", named, "a");
  REQUIRE(host.epoch(lives).id.value.empty());
  host.apply(host.registry.close_naming(host.now));
  REQUIRE(host.epoch(lives).state == EpochState::unattributed);
  REQUIRE_FALSE(host.epoch(lives).id.value.empty());
  REQUIRE(host.registry.by_serial(serial)->state == EpochState::closed);
  REQUIRE_FALSE(host.registry.by_serial(serial)->id.value.empty());
  REQUIRE(host.drained.at(serial) == 5);
  REQUIRE(host.epoch(named).tenant.value == "a");
}

TEST_CASE("a tenant's index is not used again before its last epoch is forgotten") {
  Host host;
  const auto first = host.start(100);
  host.vm("u1", first, "a");
  const auto serial = host.epoch(first).serial;
  host.exit(first);
  host.tick(100s);
  const auto second = host.start(101);
  host.vm("u2", second, "b");
  REQUIRE(host.epoch(second).tenant_index == 2);
  REQUIRE(host.registry.tenants().size() == 2);
  host.registry.forget(serial);
  host.tick();
  const auto third = host.start(102);
  host.vm("u3", third, "c");
  REQUIRE(host.epoch(third).tenant_index == 1);
}

}  // namespace
}  // namespace kvmscope::tenancy::testing
