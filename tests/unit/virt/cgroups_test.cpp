// SPDX-License-Identifier: Apache-2.0
#include "virt/cgroups.h"

#include <sys/stat.h>

#include <algorithm>

#include "tests/unit/virt/tree.h"

namespace kvmscope::virt {
namespace {

std::uint64_t inode(const std::string& path) {
  struct stat info{};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_ino;
}

TEST_CASE("the unified hierarchy is found in mountinfo") {
  struct Row {
    std::string mountinfo, expected;
  };
  const std::vector<Row> rows = {
      {"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"},
      {"33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
       "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
       "/sys/fs/cgroup/unified"},
      {"33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", ""},  // v1 only
      {"41 31 0:38 /docker/1 /inner rw - cgroup2 cgroup2 rw\n42 31 0:38 / /whole rw a:1 b:2 - cgroup2 c rw\n",
       "/whole"},  // a part of it mounted elsewhere is not it
      {"41 31 0:38 / /my\\040cgroups\\134x rw - cgroup2 cgroup2 rw\n", "/my cgroups\\x"},
      {"41 31 0:38 / /cut\\04", ""},
      {"", ""},
      {"nonsense - cgroup2 \n", ""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.mountinfo);
    CHECK(unified_mount_point(row.mountinfo) == row.expected);
  }
}

TEST_CASE("a process's place is the line of hierarchy 0") {
  CHECK(unified_path("9:name=systemd:/x\n0::/machine/vm\n") == "/machine/vm");
  CHECK(unified_path("0::/\n") == "/");
  CHECK(unified_path("9:cpu:/x\n").empty());                  // v1 only
  CHECK(unified_path("0::/machine/vm (deleted)\n").empty());  // removed
  CHECK(unified_path("0::/../../x\n").empty());               // outside of our cgroup namespace
  CHECK(unified_path("").empty());
}

TEST_CASE("climbing ends at the VM's own directory") {
  const std::string scope = R"(/machine.slice/machine-qemu\x2d1\x2dinstance\x2d00000001.scope)";
  const std::string nested = R"(/machine.slice/machine-foo.slice/machine-qemu\x2d7\x2dx.scope)";
  const std::string plain = "/machine/qemu-1-a.libvirt-qemu";
  const std::string partition = "/machine/foo.partition/qemu-12-b.c.libvirt-qemu";
  for (const std::string& directory : {scope, nested, plain, partition})
    for (const char* leaf :
         {"", "/libvirt", "/libvirt/emulator", "/libvirt/vcpu0", "/emulator", "/vcpu12", "/iothread1"}) {
      CAPTURE(directory, leaf);
      CHECK(vm_directory(directory + leaf) == directory);
    }
}

TEST_CASE("what is shared is never a VM's directory") {
  for (const char* path : {"/", "", "/machine", "/machine.slice", "/machine.slice/machine-foo.slice/emulator",
                           "/user.slice/user-0.slice/session-1.scope", "/system.slice/libvirtd.service",
                           "/libvirt/emulator", R"(/machine.slice/machine-lxc\x2d1\x2dx.scope/libvirt)",
                           R"(/machine.slice/machine-qemu\x2d1\x2dx.scope.d/emulator)",
                           "/machine/qemu-1-a.libvirt-lxc/emulator"}) {
    CAPTURE(path);
    CHECK(vm_directory(path).empty());
  }
}

TEST_CASE("ids are the inodes of the directory and all below it") {
  const TempTree tree({dir("a.scope", {file("cgroup.procs"),
                                       dir("libvirt", {dir("emulator"), dir("vcpu0"), link("loop", "..")})}),
                       dir("b.scope")});
  const CgroupTree found = read_cgroup_tree(tree.path("a.scope"));
  std::vector<std::uint64_t> expected;
  for (const char* path : {"a.scope", "a.scope/libvirt", "a.scope/libvirt/emulator", "a.scope/libvirt/vcpu0"})
    expected.push_back(inode(tree.path(path)));
  std::ranges::sort(expected);
  CHECK(cgroup_ids(found) == expected);
  CHECK(is_unchanged(found));
  CHECK(read_cgroup_tree(tree.path("c.scope")).empty());

  SECTION("a new descendant is a change") {
    tree.add(dir("vcpu1"), "a.scope/libvirt");
  }
  SECTION("so is one that goes") {
    tree.remove("a.scope/libvirt/vcpu0");
  }
  SECTION("and one in place of another") {
    tree.remove("a.scope/libvirt/vcpu0");
    tree.add(dir("vcpu1"), "a.scope/libvirt");
  }
  SECTION("and the end of it all") {
    tree.remove("a.scope");
  }
  CHECK_FALSE(is_unchanged(found));
}

TEST_CASE("members are read wherever a directory names them") {
  const TempTree tree({dir("a.scope", {file("cgroup.procs", "0\n30\n10\n"),
                                       dir("emulator"),  // threaded: cannot be read
                                       dir("libvirt", {file("cgroup.procs", "10\n20\n")})})});
  CHECK(member_pids(read_cgroup_tree(tree.path("a.scope"))) == std::vector<std::uint32_t>{10, 20, 30});
}

TEST_CASE("a VM's directory has its running id") {
  CHECK(vm_directory_id(R"(/machine.slice/machine-qemu\x2d12\x2dweb.scope)") == 12);
  CHECK(vm_directory_id("/machine/qemu-7-web-1.libvirt-qemu") == 7);
  for (const char* name : {"", "/", "/qemu-", "/qemu-x-y.libvirt-qemu", "/qemu--1-y", "/qemu-7", "/qemu-7x",
                           "/web.libvirt-qemu", "/qemu-99999999999-x", R"(/machine-lxc\x2d12\x2dweb.scope)"})
    CHECK_FALSE(vm_directory_id(name));
}

}  // namespace
}  // namespace kvmscope::virt
