// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvmscope::virt {

/// Where the whole unified hierarchy is mounted, by the text of /proc/self/mountinfo. Empty: nowhere.
std::string unified_mount_point(std::string_view mountinfo);

/// A process's place in the unified hierarchy, by the text of its /proc/PID/cgroup. Empty: none, or a cgroup
/// that is removed already or outside of what we see.
std::string unified_path(std::string_view proc_cgroup);

/// The directory that libvirt made for one VM, on or above `cgroup_path`:
///   <slices>/machine-qemu\x2d<id>\x2d<name>.scope   systemd; below it `libvirt` (since 7.1), then vcpuN,
///   emulator <partition>/qemu-<id>-<name>.libvirt-qemu       without systemd
/// Empty where there is none: what lies above, or a session's scope, is shared with others.
std::string vm_directory(std::string_view cgroup_path);

/// The running id in the name of such a directory; empty if it has none.
std::optional<std::int32_t> vm_directory_id(std::string_view directory);

/// One directory of the hierarchy. The inode number is the id that BPF sees; the link count tells, without a
/// listing, whether a subdirectory came or went.
struct CgroupDir {
  std::string path;
  std::uint64_t inode = 0;
  std::uint64_t links = 0;
};

/// A directory and all below it, parents first. Empty if it does not exist.
using CgroupTree = std::vector<CgroupDir>;
CgroupTree read_cgroup_tree(const std::string& directory);

/// Whether all of it is still as it was read. One stat() a directory.
bool is_unchanged(const CgroupTree& tree);

/// The ids, sorted.
std::vector<std::uint64_t> cgroup_ids(const CgroupTree& tree);

/// The processes in it, sorted. A threaded directory names none itself: its domain's root names them.
std::vector<std::uint32_t> member_pids(const CgroupTree& tree);

}  // namespace kvmscope::virt
