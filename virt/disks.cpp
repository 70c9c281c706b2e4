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

}  // namespace

void resolve_disk(core::Disk& disk) {
  if (!disk.invisible_reason.empty()) return;
  struct stat info{};
  if (::stat(disk.source.c_str(), &info) != 0) {
    disk.invisible_reason = disk.source + ": " + std::strerror(errno);
    return;
  }
  if (S_ISBLK(info.st_mode)) {
    disk.backing = core::DiskBacking::block_device;
    disk.device_major = major(info.st_rdev);
    disk.device_minor = minor(info.st_rdev);
  } else if (S_ISREG(info.st_mode)) {
    disk.backing = core::DiskBacking::file;
    disk.device_major = major(info.st_dev);
    disk.device_minor = minor(info.st_dev);
    disk.inode = info.st_ino;
    if (disk.device_major == 0)
      disk.invisible_reason = "the block layer cannot name a file on " + file_system_name(disk.source);
  } else {
    disk.invisible_reason = disk.source + ": neither a file nor a block device";
  }
}

}  // namespace kvmscope::virt
