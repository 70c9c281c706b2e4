// SPDX-License-Identifier: Apache-2.0
#include "virt/disks.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "tests/unit/virt/tree.h"

namespace kvmscope::virt {
namespace {

core::Disk resolve(const std::string& path) {
  core::Disk disk;
  disk.source = path;
  resolve_disk(disk);
  return disk;
}

/// Any block device of this machine; they are there to be looked at, not opened.
std::string some_block_device() {
  for (const auto& entry : std::filesystem::directory_iterator("/dev"))
    if (entry.is_block_file() && !entry.is_symlink()) return entry.path().string();
  return {};
}

TEST_CASE("a file is its file system's device and its inode, by whatever path") {
  const TempTree tree({file("a.img", "x"), link("by-id", "a.img")});
  struct stat info{};
  REQUIRE(::stat(tree.path("a.img").c_str(), &info) == 0);
  for (const char* name : {"a.img", "by-id"}) {
    const core::Disk disk = resolve(tree.path(name));
    CHECK(disk.backing == core::DiskBacking::file);
    CHECK(disk.device_major == major(info.st_dev));
    CHECK(disk.device_minor == minor(info.st_dev));
    CHECK(disk.inode == info.st_ino);
    // A file system with an anonymous device is not one that the block layer knows.
    CHECK(disk.invisible_reason.empty() == (major(info.st_dev) != 0));
  }
}

TEST_CASE("a file on an anonymous device says so") {
  const core::Disk disk = resolve("/proc/version");
  CHECK(disk.backing == core::DiskBacking::file);
  CHECK(disk.device_major == 0);
  CHECK(disk.invisible_reason == "the block layer cannot name a file on its file system");
  if (const std::string shm = "/dev/shm/kvmscope-test-disk"; std::ofstream(shm) << "x") {
    CHECK(resolve(shm).invisible_reason == "the block layer cannot name a file on tmpfs");
    std::filesystem::remove(shm);
  }
}

TEST_CASE("a block device is itself, also behind a link") {
  const std::string device = some_block_device();
  REQUIRE_FALSE(device.empty());
  struct stat info{};
  REQUIRE(::stat(device.c_str(), &info) == 0);
  const TempTree tree({link("by-id", device)});
  const core::Disk disk = resolve(tree.path("by-id"));
  CHECK(disk.backing == core::DiskBacking::block_device);
  CHECK(disk.device_major == major(info.st_rdev));
  CHECK(disk.device_minor == minor(info.st_rdev));
  CHECK(disk.inode == 0);
  CHECK(disk.invisible_reason.empty());
}

/// As a host block request names it.
core::DiskImage image_of(const std::string& path) {
  struct stat info{};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  if (S_ISBLK(info.st_mode))
    return {core::DiskBacking::block_device, major(info.st_rdev), minor(info.st_rdev), 0};
  return {core::DiskBacking::file, major(info.st_dev), minor(info.st_dev), info.st_ino};
}

TEST_CASE("a disk's other images: each once, and only those that a request can name") {
  const std::string device = some_block_device();
  const TempTree tree({file("top", "x"), file("base", "x"), link("base-link", "base"),
                       link("top-link", "top"), dir("d"), link("dangling", "nowhere"),
                       link("device", device)});
  core::Disk disk;
  disk.source = tree.path("top");
  resolve_disk(disk,
               {tree.path("base"), tree.path("none"), "/proc/version", tree.path("d"), tree.path("dangling"),
                "/dev/null", tree.path("base-link"), tree.path("top-link"), tree.path("device"), device});
  std::vector<core::DiskImage> expected = {image_of(tree.path("base")), image_of(device)};
  if (expected[0].device_major == 0) expected.erase(expected.begin());
  CHECK(disk.more_images == expected);
  CHECK(disk.inode == image_of(tree.path("top")).inode);

  SECTION("below a top one that nothing can name") {
    core::Disk network;
    network.invisible_reason = "network storage";
    resolve_disk(network, {device});
    CHECK(network.backing == core::DiskBacking::invisible);
    CHECK(network.invisible_reason == "network storage");
    CHECK(network.more_images == std::vector{image_of(device)});
  }
}

TEST_CASE("what cannot be looked at is invisible, with the reason") {
  const TempTree tree({link("dangling", "nowhere"), dir("d")});
  for (const std::string& path :
       {tree.path("none"), tree.path("dangling"), tree.path("d"), std::string("/dev/null")}) {
    const core::Disk disk = resolve(path);
    CHECK(disk.backing == core::DiskBacking::invisible);
    CHECK(disk.invisible_reason.starts_with(path + ": "));
  }
  core::Disk network;
  network.source = "/dev/null";
  network.invisible_reason = "network storage";
  resolve_disk(network);
  CHECK(network.invisible_reason == "network storage");
}

}  // namespace
}  // namespace kvmscope::virt
