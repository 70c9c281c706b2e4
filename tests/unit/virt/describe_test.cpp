// SPDX-License-Identifier: Apache-2.0
#include "virt/describe.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>

#include "tests/unit/virt/tree.h"

namespace kvmscope::virt {
namespace {

const core::VmUuid kUuid{"6b766d73-0000-4000-8000-00000000000a"};
const core::VmUuid kOther{"6b766d73-0000-4000-8000-00000000000b"};
const std::string kScope = R"(/machine.slice/machine-qemu\x2d1\x2da.scope)";

Entry qemu(unsigned pid, const core::VmUuid& uuid, const std::string& cgroup) {
  FakeProcess fake;
  fake.pid = pid;
  fake.start = pid * 100;
  fake.arguments = {"qemu", "-uuid", uuid.value};
  fake.cgroup = cgroup;
  return process(fake);
}

Entry helper(unsigned pid, const std::string& cgroup) {
  FakeProcess fake;
  fake.pid = pid;
  fake.start = pid * 100;
  fake.arguments = {"swtpm"};
  fake.cgroup = cgroup;
  return process(fake);
}

Entry scope(const std::string& members) {
  return dir("machine.slice", {file("cgroup.procs"),
                               dir(R"(machine-qemu\x2d1\x2da.scope)",
                                   {file("cgroup.procs"), dir("libvirt", {file("cgroup.procs", members),
                                                                          dir("emulator"), dir("vcpu0")})})});
}

DomainXml domain() {
  DomainXml domain;
  domain.facts.uuid = kUuid;
  domain.facts.name = "a";
  return domain;
}

TEST_CASE("a VM has its scope, the ids in it and its helpers") {
  const TempTree proc({qemu(10, kUuid, kScope + "/libvirt/emulator"),
                       helper(11, kScope + "/libvirt/emulator"), helper(12, "/system.slice")});
  const TempTree cgroups({scope("10\n11\n12\n13\n")});  // 12 has moved since, 13 has ended
  const auto vm = describe_on_host({proc.root(), cgroups.root(), "/nowhere"}, domain());
  REQUIRE(vm);
  CHECK(vm->facts.process == core::ProcessKey{10, 1000});
  CHECK(vm->facts.cgroup_path == kScope);
  CHECK(vm->facts.cgroup_ids.size() == 4);
  CHECK(vm->facts.cgroup_ids == cgroup_ids(read_cgroup_tree(cgroups.root() + kScope)));
  CHECK(vm->facts.helpers == std::vector{core::ProcessKey{11, 1100}});
}

TEST_CASE("each disk gets its own images") {
  const TempTree proc({qemu(10, kUuid, "/")});
  const TempTree images({file("top"), file("base"), file("other")});
  DomainXml xml = domain();
  xml.facts.disks.resize(2);
  xml.facts.disks[0].source = images.path("top");
  xml.facts.disks[1].source = images.path("other");
  xml.more_images = {{images.path("base")}, {}};
  const auto vm = describe_on_host({proc.root(), "", "/nowhere"}, xml);
  REQUIRE(vm);
  struct stat base{};
  REQUIRE(::stat(images.path("base").c_str(), &base) == 0);
  if (major(base.st_dev) == 0) return;  // nothing on this file system has a name in the block layer
  REQUIRE(vm->facts.disks[0].more_images.size() == 1);
  CHECK(vm->facts.disks[0].more_images[0].inode == base.st_ino);
  CHECK(vm->facts.disks[1].more_images.empty());
}

TEST_CASE("a directory that two VMs share is neither's") {
  const TempTree proc(
      {qemu(10, kUuid, kScope + "/libvirt/emulator"), qemu(11, kOther, kScope + "/libvirt/vcpu0")});
  const TempTree cgroups({scope("10\n11\n")});
  const auto vm = describe_on_host({proc.root(), cgroups.root(), "/nowhere"}, domain());
  REQUIRE(vm);
  CHECK(vm->facts.process == core::ProcessKey{10, 1000});
  CHECK(vm->facts.cgroup_path.empty());
  CHECK(vm->facts.cgroup_ids.empty());
  CHECK(vm->facts.helpers.empty());
}

TEST_CASE("without a cgroup of its own a VM is its process") {
  struct Row {
    std::string process_cgroup, cgroup_root;
  };
  const TempTree cgroups({dir("user.slice", {file("cgroup.procs", "10\n11\n")})});
  for (const Row& row : {Row{"/user.slice", cgroups.root()},          // session mode
                         Row{kScope + "/libvirt/emulator", ""},       // v1 only
                         Row{kScope + "/emulator", cgroups.root()}})  // another cgroup mount than ours
  {
    const TempTree proc({qemu(10, kUuid, row.process_cgroup), helper(11, row.process_cgroup)});
    const auto vm = describe_on_host({proc.root(), row.cgroup_root, "/nowhere"}, domain());
    REQUIRE(vm);
    CHECK(vm->facts.process == core::ProcessKey{10, 1000});
    CHECK(vm->facts.cgroup_path.empty());
    CHECK(vm->facts.cgroup_ids.empty());
    CHECK(vm->facts.helpers.empty());
  }
}

TEST_CASE("a domain without a process is not described") {
  const TempTree proc({qemu(10, kOther, "/")});
  const auto vm = describe_on_host({proc.root(), "", "/nowhere"}, domain());
  REQUIRE_FALSE(vm);
  CHECK(vm.error().code() == core::ErrorCode::not_found);
}

}  // namespace
}  // namespace kvmscope::virt
