// SPDX-License-Identifier: Apache-2.0
#include "virt/disks.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace kvmscope::virt {
namespace {

struct FileSystem {
  std::uint32_t magic;
  const char* name;
};
// Those without a block device number of their own that images live on; magics missing in linux/magic.h are
// fs/fuse/inode.c's and OpenZFS's.
constexpr std::array kAnonymous = {
    FileSystem{BTRFS_SUPER_MAGIC, "btrfs"}, FileSystem{OVERLAYFS_SUPER_MAGIC, "overlayfs"},
    FileSystem{NFS_SUPER_MAGIC, "NFS"},     FileSystem{CEPH_SUPER_MAGIC, "CephFS"},
    FileSystem{TMPFS_MAGIC, "tmpfs"},       FileSystem{0x65735546, "FUSE"},
    FileSystem{0x2fc12fc1, "ZFS"},
};

std::string file_system_name(const std::string& path) {
  struct statfs info{};
  if (::statfs(path.c_str(), &info) != 0) return "its file system";
  const auto magic = static_cast<std::uint32_t>(info.f_type);
  const auto* const known = std::ranges::find(kAnonymous, magic, &FileSystem::magic);
  return known == kAnonymous.end() ? "its file system" : known->name;
}

struct Examined {
  core::DiskImage image;
  std::string why_not;  ///< empty: host block requests can name it
};

Examined examine(const std::string& path) {
  using enum core::DiskBacking;
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) return {{}, path + ": " + std::strerror(errno)};
  if (S_ISBLK(info.st_mode)) return {{block_device, major(info.st_rdev), minor(info.st_rdev), 0}, ""};
  if (!S_ISREG(info.st_mode)) return {{}, path + ": neither a file nor a block device"};
  const core::DiskImage image{file, major(info.st_dev), minor(info.st_dev), info.st_ino};
  if (image.device_major == 0)
    return {image, "the block layer cannot name a file on " + file_system_name(path)};
  return {image, ""};
}

}  // namespace

void resolve_disk(core::Disk& disk, const std::vector<std::string>& more_images) {
  if (disk.invisible_reason.empty()) {
    Examined top = examine(disk.source);
    disk.backing = top.image.backing;
    disk.device_major = top.image.device_major;
    disk.device_minor = top.image.device_minor;
    disk.inode = top.image.inode;
    disk.invisible_reason = std::move(top.why_not);
  }
  const core::DiskImage top{disk.backing, disk.device_major, disk.device_minor, disk.inode};
  for (const std::string& path : more_images) {
    const Examined found = examine(path);
    if (!found.why_not.empty() || found.image == top) continue;
    if (std::ranges::find(disk.more_images, found.image) == disk.more_images.end())
      disk.more_images.push_back(found.image);
  }
}

}  // namespace kvmscope::virt
