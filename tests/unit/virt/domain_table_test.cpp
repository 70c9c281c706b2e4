// SPDX-License-Identifier: Apache-2.0
#include "virt/domain_table.h"

#include "tests/unit/virt/tree.h"

namespace kvmscope::virt {
namespace {

using namespace std::chrono_literals;

const core::VmUuid kA{"6b766d73-0000-4000-8000-00000000000a"};
const core::VmUuid kB{"6b766d73-0000-4000-8000-00000000000b"};
constexpr const char* kGroup = "qemu-1-a.libvirt-qemu";

/// The table on a fake host, and what it told, one line each: "seen a 10", "gone a 10", "problem a why".
struct Fixture {
  void start_process(unsigned pid) {
    FakeProcess fake;
    fake.pid = pid;
    fake.start = pid;
    proc.add(process(fake));
  }
  void end_process(unsigned pid) const { proc.remove(std::to_string(pid)); }
  DescribedVm vm(const core::VmUuid& uuid, unsigned pid, const std::string& tenant = "t") {
    DescribedVm described;
    described.facts.uuid = uuid;
    described.facts.name = name(uuid);
    described.facts.process = {pid, pid};
    described.facts.own = core::OwnMetadata{tenant, ""};
    described.facts.cgroup_path = std::string("/") + kGroup;
    described.cgroups = read_cgroup_tree(cgroups.path(kGroup));
    described.facts.cgroup_ids = cgroup_ids(described.cgroups);
    return described;
  }
  static std::string name(const core::VmUuid& uuid) { return uuid.value.substr(35); }
  void started(const core::VmUuid& uuid) { table.on_event({uuid, name(uuid), false}); }
  void stopped(const core::VmUuid& uuid) { table.on_event({uuid, name(uuid), true}); }
  void list(const std::vector<core::VmUuid>& uuids) {
    std::vector<ListedDomain> running;
    for (const core::VmUuid& uuid : uuids) running.push_back({uuid, name(uuid)});
    table.on_list(running);
  }
  /// The uuid that is to be looked at next, as its last letter; empty: none.
  std::string next() {
    const auto request = table.next_look();
    return request ? name(request->uuid) : "";
  }
  void answer(const core::VmUuid& uuid, const Look& look) { table.on_look(uuid, look, now); }
  void answer(const core::VmUuid& uuid, unsigned pid) { answer(uuid, Look(vm(uuid, pid))); }
  Look broken(const std::string& why) const {
    return std::unexpected(LookFailure{why, core::Error(core::ErrorCode::corrupt, detail)});
  }
  std::vector<std::string> told() { return std::exchange(log, {}); }

  TempTree proc;
  TempTree cgroups{{dir(kGroup, {dir("emulator"), dir("vcpu0")})}};
  std::vector<std::string> log;
  std::string detail;
  DomainTable::Time now{};
  DomainTable table{
      {proc.root(), cgroups.root(), ""},
      {[this](const VmSeen& event) {
         log.push_back("seen " + event.facts.name + " " + std::to_string(event.facts.process.tgid));
       },
       [this](const VmGone& event) {
         log.push_back("gone " + name(event.uuid) + " " + std::to_string(event.process.tgid));
       },
       [this](const VmProblem& event) {
         log.push_back("problem " + event.name + " " + event.reason +
                       (event.detail.empty() ? "" : ": " + event.detail));
       }}};
};

using Lines = std::vector<std::string>;
const Look kNotRunning = std::optional<DescribedVm>();

TEST_CASE_METHOD(Fixture, "a domain comes, stays as it is, changes, and goes") {
  start_process(10);
  started(kA);
  CHECK(next() == "a");
  CHECK(next().empty());
  answer(kA, 10);
  CHECK(told() == Lines{"seen a 10"});
  CHECK(table.running() == std::vector{kA});

  started(kA);  // some event
  CHECK(next() == "a");
  answer(kA, 10);
  CHECK(told().empty());  // nothing new

  started(kA);
  CHECK(next() == "a");
  answer(kA, Look(vm(kA, 10, "t2")));
  CHECK(told() == Lines{"seen a 10"});

  end_process(10);
  stopped(kA);
  CHECK(told() == Lines{"gone a 10"});
  CHECK(table.running().empty());
  CHECK(next().empty());
}

TEST_CASE_METHOD(Fixture, "a sign that something changed: its images, say") {
  start_process(10);
  table.on_touched("a");  // it is only being started, and told when it runs
  CHECK(next().empty());
  started(kA);
  next();
  answer(kA, 10);
  told();
  table.on_touched("b");
  CHECK(next().empty());
  table.on_touched("a");
  CHECK(next() == "a");
  DescribedVm changed = vm(kA, 10);
  changed.facts.disks.emplace_back().more_images = {{core::DiskBacking::file, 8, 1, 77}};
  answer(kA, Look(changed));
  CHECK(told() == Lines{"seen a 10"});

  table.on_touched("a");
  next();
  changed.facts.disks[0].more_images.push_back({core::DiskBacking::file, 8, 1, 78});
  table.on_touched("a");  // meanwhile again
  answer(kA, Look(changed));
  CHECK(told() == Lines{"seen a 10"});
  CHECK(next() == "a");
}

TEST_CASE_METHOD(Fixture, "never two looks at one domain") {
  start_process(10);
  started(kA);
  CHECK(next() == "a");
  started(kA);
  list({kA});
  CHECK(next().empty());
  answer(kA, 10);
  CHECK(next() == "a");  // once, for all that happened since
  answer(kA, 10);
  CHECK(next().empty());
}

TEST_CASE_METHOD(Fixture, "it restarts under its UUID") {
  start_process(10);
  started(kA);
  next();
  answer(kA, 10);
  told();

  SECTION("events in order") {
    end_process(10);
    stopped(kA);
    start_process(11);
    started(kA);
    CHECK(next() == "a");
    answer(kA, 11);
    CHECK(told() == Lines{"gone a 10", "seen a 11"});
  }
  SECTION("the new run is seen before the old one's end is heard of") {
    end_process(10);
    start_process(11);
    list({kA});
    CHECK(next() == "a");
    answer(kA, 11);
    CHECK(told() == Lines{"gone a 10", "seen a 11"});
    stopped(kA);
    started(kA);
    CHECK(next() == "a");
    answer(kA, 11);
    CHECK(told().empty());
    CHECK(table.running() == std::vector{kA});
  }
  SECTION("while it is looked at") {
    started(kA);
    CHECK(next() == "a");
    end_process(10);
    stopped(kA);
    start_process(11);
    started(kA);
    answer(kA, 11);  // saw the new one already
    CHECK(told() == Lines{"gone a 10", "seen a 11"});
    CHECK(next() == "a");
    answer(kA, 11);
    CHECK(told().empty());
  }
  SECTION("the same process id") {
    end_process(10);
    FakeProcess reused;
    reused.pid = 10;
    reused.start = 99;
    proc.add(process(reused));
    stopped(kA);
    CHECK(told() == Lines{"gone a 10"});
  }
}

TEST_CASE_METHOD(Fixture, "an end announced during the look") {
  start_process(10);
  started(kA);
  CHECK(next() == "a");
  SECTION("that still found it: it is told for what it was") {
    end_process(10);
    stopped(kA);
    answer(kA, 10);
    CHECK(told() == Lines{"seen a 10", "gone a 10"});
  }
  SECTION("that found nothing any more") {
    end_process(10);
    stopped(kA);
    SECTION("because libvirt forgot it") {
      answer(kA, kNotRunning);
    }
    SECTION("because its process was gone") {
      answer(kA, broken("no process"));
    }
    now += 10s;
    table.tick(now);
    CHECK(told().empty());
  }
  CHECK(table.running().empty());
  CHECK(next().empty());
}

TEST_CASE_METHOD(Fixture, "a list makes up for lost events") {
  start_process(10);
  start_process(20);
  list({kA, kB});
  CHECK_FALSE(table.take_list_done());
  CHECK(next() == "a");
  CHECK(next() == "b");
  answer(kB, 20);
  CHECK_FALSE(table.take_list_done());
  answer(kA, 10);
  CHECK(table.take_list_done());
  CHECK_FALSE(table.take_list_done());
  CHECK(told() == Lines{"seen b 20", "seen a 10"});
  CHECK(table.running() == std::vector{kA, kB});

  SECTION("one went meanwhile") {
    end_process(10);
    list({kB});
    CHECK(next() == "a");
    answer(kA, kNotRunning);
    CHECK(next() == "b");
    answer(kB, 20);
    CHECK(told() == Lines{"gone a 10"});
    CHECK(table.running() == std::vector{kB});
  }
  SECTION("one is missing in the list, but had started again since") {
    end_process(10);
    start_process(11);
    list({kB});
    CHECK(next() == "a");
    answer(kA, 11);
    CHECK(told() == Lines{"gone a 10", "seen a 11"});
  }
  SECTION("libvirt forgot one that runs: it is gone when its process is") {
    list({kB});
    CHECK(next() == "a");
    answer(kA, kNotRunning);
    CHECK(told() == Lines{"problem a libvirt does not know it any more, but its QEMU process runs"});
    table.tick(now);
    CHECK(told().empty());
    end_process(10);
    table.tick(now);
    CHECK(told() == Lines{"gone a 10"});
  }
  SECTION("events go first") {
    list({kA, kB});
    started(kB);
    CHECK(next() == "b");
    CHECK(next() == "a");
    CHECK(next().empty());
  }
  SECTION("an empty list is done at once") {
    Fixture other;
    other.list({});
    CHECK(other.table.take_list_done());
  }
}

TEST_CASE_METHOD(Fixture, "while disconnected nobody is gone") {
  start_process(10);
  started(kA);
  next();
  answer(kA, 10);
  started(kA);
  CHECK(next() == "a");
  table.on_disconnect();
  end_process(10);
  table.tick(now + 1h);
  CHECK(told() == Lines{"seen a 10"});
  table.on_look_lost(kA);
  CHECK(told().empty());
  list({});
  CHECK(next() == "a");
  answer(kA, kNotRunning);
  CHECK(told() == Lines{"gone a 10"});
  CHECK(table.take_list_done());
}

TEST_CASE_METHOD(Fixture, "one that cannot be described is a problem when it stays so, and hides no other") {
  start_process(20);
  list({kA, kB});
  next();
  next();
  answer(kA, broken("bad"));
  answer(kB, 20);
  CHECK(table.take_list_done());
  CHECK(told() == Lines{"seen b 20"});
  CHECK(table.running() == std::vector{kA, kB});

  now += 500ms;
  table.tick(now);
  CHECK(next() == "a");
  answer(kA, broken("bad"));
  CHECK(told().empty());
  now += 600ms;
  table.tick(now);
  CHECK(next() == "a");
  answer(kA, broken("bad"));
  CHECK(told() == Lines{"problem a bad"});
  now += 10s;
  table.tick(now);
  CHECK(next().empty());  // now only at lists
  list({kA, kB});
  CHECK(next() == "a");
  answer(kA, broken("bad"));
  CHECK(told().empty());  // told once
  detail = "line 3";
  list({kA, kB});
  CHECK(next() == "b");
  answer(kB, 20);
  CHECK(next() == "a");
  answer(kA, broken("bad"));
  CHECK(told() == Lines{"problem a bad: line 3"});
  started(kA);
  start_process(10);
  CHECK(next() == "a");
  answer(kA, 10);
  CHECK(told() == Lines{"seen a 10"});
}

TEST_CASE_METHOD(Fixture, "a problem that passes is taken back by telling the VM again") {
  start_process(10);
  started(kA);
  next();
  answer(kA, 10);
  started(kA);
  next();
  table.on_look_stuck(kA, "no answer", "5 s");
  CHECK(told() == Lines{"seen a 10", "problem a no answer: 5 s"});
  list({kA});
  CHECK(next().empty());  // that look is still out
  CHECK(table.take_list_done());
  CHECK(table.running() == std::vector{kA});
  table.on_look_lost(kA);
  CHECK(next() == "a");
  answer(kA, 10);
  CHECK(told() == Lines{"seen a 10"});
}

TEST_CASE_METHOD(Fixture, "a list does not wait for a look that is stuck") {
  start_process(10);
  start_process(20);
  list({kA, kB});
  CHECK(next() == "a");
  CHECK(next() == "b");
  answer(kB, 20);
  CHECK_FALSE(table.take_list_done());
  table.on_look_stuck(kA, "no answer", "");
  CHECK(table.take_list_done());
  CHECK(table.running() == std::vector{kA, kB});
  list({kA, kB});
  CHECK(next() == "b");
  CHECK(next().empty());
  answer(kB, 20);
  CHECK(table.take_list_done());
  answer(kA, 10);
  CHECK(told() == Lines{"seen b 20", "problem a no answer", "seen a 10"});
}

TEST_CASE_METHOD(Fixture, "what was to be looked at still is on the next connection") {
  start_process(10);
  started(kA);
  table.on_disconnect();
  CHECK(next() == "a");
  answer(kA, 10);
  CHECK(told() == Lines{"seen a 10"});
}

TEST_CASE_METHOD(Fixture, "cgroups that come and go are noticed") {
  start_process(10);
  started(kA);
  next();
  answer(kA, 10);
  told();
  table.tick(now);
  CHECK(told().empty());
  cgroups.add(dir("vcpu1"), kGroup);
  table.tick(now);
  CHECK(told() == Lines{"seen a 10"});
  table.tick(now);
  CHECK(told().empty());
  started(kA);
  next();
  answer(kA, 10);
  CHECK(told().empty());  // the look found what was told already

  cgroups.add(dir("vcpu2"), kGroup);
  end_process(10);
  table.tick(now);
  CHECK(told().empty());  // not this process's any more
}

}  // namespace
}  // namespace kvmscope::virt
