// SPDX-License-Identifier: Apache-2.0
#include "virt/processes.h"

#include <algorithm>

#include "tests/unit/virt/tree.h"
#include "virt/libvirt_source.h"

namespace kvmscope::virt {
namespace {

const core::VmUuid kUuid{"6b766d73-0000-4000-8000-00000000000a"};
const core::VmUuid kOther{"6b766d73-0000-4000-8000-00000000000b"};

FakeProcess qemu(unsigned pid, std::uint64_t start, const core::VmUuid& uuid, const std::string& name = "a") {
  FakeProcess fake;
  fake.pid = pid;
  fake.start = start;
  fake.arguments = {"qemu-system-x86_64",
                    "-name",
                    "guest=" + name + ",debug-threads=on",
                    "-machine",
                    "pc",
                    "-uuid",
                    uuid.value};
  return fake;
}

QemuCommandLine parse(std::initializer_list<std::string> arguments) {
  std::string text;
  for (const std::string& argument : arguments) text += argument + '\0';
  return parse_qemu_command_line(text);
}

TEST_CASE("QEMU's command line names the guest") {
  CHECK(parse({"qemu", "-uuid", "ABCD-ef"}).uuid.value == "abcd-ef");
  CHECK(parse({"qemu", "--uuid", "abcd"}).uuid.value == "abcd");
  CHECK(parse({"qemu", "-uuid"}).uuid.value.empty());
  CHECK(parse({"qemu", "-name", "-uuid"}).uuid.value.empty());
  CHECK(parse({"qemu", "-name", "guest=a b,debug-threads=on"}).guest_name == "a b");
  CHECK(parse({"qemu", "-name", "guest=a,,b,,,debug-threads=on"}).guest_name == "a,b,");
  CHECK(parse({"qemu", "-name", "debug-threads=on,guest=x"}).guest_name == "x");
  CHECK(parse({"qemu", "-name", "old,process=y"}).guest_name == "old");
  CHECK(parse({"qemu", "-machine", "none,accel=kvm:tcg"}).capability_probe);
  CHECK(parse({"qemu", "-M", "none"}).capability_probe);
  CHECK_FALSE(parse({"qemu", "-machine", "nonesuch"}).capability_probe);
  CHECK_FALSE(parse({"qemu", "-machine", "pc", "-S", "none"}).capability_probe);
  CHECK(parse_qemu_command_line("").uuid.value.empty());
  CHECK(parse_qemu_command_line(std::string_view("-uuid\0x", 7)).uuid.value == "x");  // no NUL at the end
}

TEST_CASE("a process is its pid and its start") {
  FakeProcess odd = qemu(7, 4711, kUuid);
  odd.comm = "a) S 1 (b";
  FakeProcess dead = qemu(8, 1, kUuid);
  dead.state = 'Z';
  const TempTree proc({process(odd), process(dead), dir("9", {file("stat", "9 (x) S 1\n")}), dir("10")});
  CHECK(process_key(proc.root(), 7) == core::ProcessKey{7, 4711});
  CHECK(process_key(proc.root(), 8).error().code() == core::ErrorCode::not_found);
  CHECK(process_key(proc.root(), 9).error().code() == core::ErrorCode::corrupt);
  CHECK(process_key(proc.root(), 10).error().code() == core::ErrorCode::not_found);
  CHECK(is_alive(proc.root(), {7, 4711}));
  CHECK_FALSE(is_alive(proc.root(), {7, 4710}));
  CHECK(process_key("/proc", static_cast<unsigned>(getpid())));  // the real format
}

TEST_CASE("a QEMU is described") {
  FakeProcess vm = qemu(20, 5, kUuid, "web");
  vm.cgroup = "/machine/qemu-1-web.libvirt-qemu/emulator";
  FakeProcess inside = qemu(21, 6, kOther);
  inside.pid_in_namespace = "\t1";
  FakeProcess probe = qemu(22, 7, kOther);
  probe.arguments = {"qemu-system-x86_64", "-machine", "none"};
  const TempTree proc({process(vm), process(inside), process(probe)});

  const auto found = describe_qemu(proc.root(), {20, 5});
  REQUIRE(found);
  CHECK(found->process == core::ProcessKey{20, 5});
  CHECK(found->comm == "qemu-system-x86");
  CHECK(found->uuid == kUuid);
  CHECK(found->guest_name == "web");
  CHECK(found->user == 64055);
  CHECK(found->cgroup_path == "/machine/qemu-1-web.libvirt-qemu/emulator");
  CHECK_FALSE(found->in_container);
  CHECK_FALSE(found->capability_probe);
  CHECK(describe_qemu(proc.root(), {21, 6})->in_container);
  CHECK(describe_qemu(proc.root(), {22, 7})->capability_probe);

  CHECK(describe_qemu(proc.root(), {20, 4}).error().code() ==
        core::ErrorCode::not_found);  // the pid's last owner
  CHECK(describe_qemu(proc.root(), {23, 4}).error().code() == core::ErrorCode::not_found);
}

TEST_CASE("a thread's id is no process") {
  const TempTree proc({process(qemu(30, 5, kUuid))});
  proc.add(file("status", "Name:\tx\nTgid:\t29\nPid:\t30\nNSpid:\t30\n"), "30");
  CHECK_FALSE(describe_qemu(proc.root(), {30, 5}));
}

TEST_CASE("processes are found by their executable") {
  FakeProcess other = qemu(2, 1, kUuid);
  other.executable = "/usr/bin/bash";
  FakeProcess upgraded = qemu(3, 1, kUuid);
  upgraded.executable = "/usr/libexec/qemu-kvm (deleted)";
  const TempTree proc(
      {process(qemu(1, 1, kUuid)), process(other), process(upgraded), dir("self"), file("4")});
  const auto pids = [&](const std::vector<std::string>& names) {
    std::vector<unsigned> found;
    for (const core::ProcessKey& process : find_qemu(proc.root(), names)) found.push_back(process.tgid);
    std::ranges::sort(found);
    return found;
  };
  CHECK(pids({"qemu-system-*", "qemu-kvm"}) == std::vector<unsigned>{1, 3});
  CHECK(pids({"qemu-kvm"}) == std::vector<unsigned>{3});
  CHECK(pids({"qemu-system"}).empty());
  CHECK(pids({}).empty());
}

DomainXml domain(const std::string& name = "a", const core::VmUuid& uuid = kUuid) {
  DomainXml domain;
  domain.facts.name = name;
  domain.facts.uuid = uuid;
  domain.facts.domain_id = 3;
  domain.emulator = "/opt/emulators/emu-9";
  domain.user = 64055;
  return domain;
}

TEST_CASE("a domain's process is the one that carries its UUID") {
  const TempTree proc({process(qemu(40, 5, kUuid)), process(qemu(41, 6, kOther))});
  const TempTree run({file("a.pid", "40")});
  const auto find = [&] { return find_domain_process({proc.root(), "", run.root()}, domain()); };
  CHECK(find() == core::ProcessKey{40, 5});

  SECTION("without a pid file") {
    run.remove("a.pid");
    CHECK(find() == core::ProcessKey{40, 5});
  }
  SECTION("with a pid file that another process has got") {
    run.add(file("a.pid", "41\n"));
    CHECK(find() == core::ProcessKey{40, 5});
  }
  SECTION("with nonsense in the pid file") {
    for (const char* text : {"", "x", "-1", "0", "40 41", "99999999999999999999"}) {
      run.add(file("a.pid", text));
      CHECK(find() == core::ProcessKey{40, 5});
    }
  }
  SECTION("a second one: the pid file decides, and without it nothing is guessed") {
    proc.add(process(qemu(42, 9, kUuid)));
    CHECK(find() == core::ProcessKey{40, 5});
    run.remove("a.pid");
    CHECK(find().error().code() == core::ErrorCode::invalid_argument);
  }
  SECTION("none: its pid is another's by now") {
    proc.remove("40");
    proc.add(process(qemu(40, 77, kOther)));
    CHECK(find().error().code() == core::ErrorCode::not_found);
  }
  SECTION("a name never leads out of the folder") {
    const auto found = find_domain_process({proc.root(), "", run.root() + "/x"}, domain("../a", kOther));
    CHECK(found == core::ProcessKey{41, 6});
  }
}

TEST_CASE("a process that only says to be the domain's is not") {
  const std::string scope = R"(/machine.slice/machine-qemu\x2d3\x2da.scope)";
  const std::string other_scope = R"(/machine.slice/machine-qemu\x2d4\x2db.scope)";
  const TempTree cgroups({dir(
      "machine.slice", {dir(R"(machine-qemu\x2d3\x2da.scope)"), dir(R"(machine-qemu\x2d4\x2db.scope)")})});
  const TempTree run;
  FakeProcess real = qemu(40, 5, kUuid);
  FakeProcess forged = qemu(41, 6, kUuid);
  DomainXml wanted = domain();
  /// With the real one, then alone.
  struct Found {
    core::Result<core::ProcessKey> among, alone;
  };
  const auto find = [&](const std::string& cgroup_root) -> Found {
    const TempTree both({process(real), process(forged)});
    const TempTree one({process(forged)});
    return {find_domain_process({both.root(), cgroup_root, run.root()}, wanted),
            find_domain_process({one.root(), cgroup_root, run.root()}, wanted)};
  };
  const core::ProcessKey right{40, 5};

  SECTION("a user's process, of whatever name") {
    forged.user = 1000;
    CHECK(find("").among == right);
    CHECK(find("").alone.error().code() == core::ErrorCode::not_found);
    const TempTree proc({process(forged)});
    run.add(file("a.pid", "41"));  // left over, and the number is in use again
    CHECK_FALSE(find_domain_process({proc.root(), "", run.root()}, wanted));
  }
  SECTION("no QEMU at all: somebody looks for one") {
    forged.executable = "/usr/bin/grep";
    CHECK(find("").among == right);
    CHECK(find("").alone.error().code() == core::ErrorCode::not_found);
  }
  SECTION("the emulator that the domain names may have any name") {
    forged.executable = "/opt/emulators/emu-9 (deleted)";
    CHECK(find("").alone == core::ProcessKey{41, 6});
    CHECK(find("").among.error().code() == core::ErrorCode::invalid_argument);
  }
  SECTION("libvirt does not say which user: the cgroup decides") {
    wanted.user.reset();
    forged.user = 1000;
    CHECK(find(cgroups.root()).among.error().code() == core::ErrorCode::invalid_argument);
    real.cgroup = scope + "/libvirt/emulator";
    CHECK(find(cgroups.root()).among == right);
    CHECK(find("").among.error().code() == core::ErrorCode::invalid_argument);
  }
  SECTION("another VM's QEMU, taken over by its guest") {
    forged.cgroup = other_scope + "/libvirt/emulator";
    CHECK(find(cgroups.root()).among == right);
    CHECK(find(cgroups.root()).alone.error().code() == core::ErrorCode::not_found);
  }
  SECTION("a directory of that name that is not there, or a user's, proves nothing") {
    real.cgroup = "/custom" + scope;
    forged.cgroup = "/user.slice" + scope;
    CHECK(find(cgroups.root()).among.error().code() == core::ErrorCode::invalid_argument);
    cgroups.add(dir("custom", {dir("machine.slice", {dir(R"(machine-qemu\x2d3\x2da.scope)")})}));
    CHECK(find(cgroups.root()).among == right);
    if (::geteuid() == 0) {
      cgroups.add(dir("user.slice", {dir("machine.slice", {dir(R"(machine-qemu\x2d3\x2da.scope)")})}));
      REQUIRE(::chown(cgroups.path(("user.slice" + scope)).c_str(), 1000, 1000) == 0);
      CHECK(find(cgroups.root()).among == right);
    }
  }
}

}  // namespace
}  // namespace kvmscope::virt
