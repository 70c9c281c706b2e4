// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hostd/core/ids.h"

namespace kvmscope::core {

/// How the host reaches a disk's data, as far as the block layer's events can show it.
enum class DiskBacking {
  block_device,  ///< device is the disk itself (st_rdev)
  file,          ///< device is the file system's (st_dev), inode the file's
  invisible,     ///< network storage, vhost-user, an empty drive: no host block request will ever name it
};

/// An image below a disk's top one (its backing file), or the target it is being copied to.
struct DiskImage {
  DiskBacking backing = DiskBacking::invisible;
  std::uint32_t device_major = 0;
  std::uint32_t device_minor = 0;
  std::uint64_t inode = 0;  ///< 0 unless backing is file
  bool operator==(const DiskImage&) const = default;
};

/// One disk of a domain.
struct Disk {
  std::string target;  ///< guest-facing name in the domain XML: vda
  std::string alias;   ///< libvirt's alias, QEMU's device id: virtio-disk0
  std::string source;  ///< path on the host, empty if there is none. Never shown to a tenant.
  DiskBacking backing = DiskBacking::invisible;
  std::uint32_t device_major = 0;
  std::uint32_t device_minor = 0;
  std::uint64_t inode = 0;  ///< 0 unless backing is file
  /// Why the disk cannot be traced (backing invisible, or a path that could not be examined); empty if it
  /// can.
  std::string invisible_reason;
  /// Requests on these are the disk's, too. Only those that host block requests can name.
  std::vector<DiskImage> more_images;
  bool operator==(const Disk&) const = default;
};

/// One network interface of a domain.
struct Nic {
  std::string tap;  ///< host interface, empty where there is none (SR-IOV, vhost-user)
  std::string mac;
  std::string alias;  ///< libvirt's alias, QEMU's device id: net0
  std::string model;
  /// The tap as the kernel tells it apart: its index in the network namespace of that number. 0: not visible.
  std::uint32_t netns = 0;
  std::uint32_t ifindex = 0;
  std::string invisible_reason;  ///< why its packets pass no tap; empty if they do
  bool operator==(const Nic&) const = default;
};

/// What nova wrote into the domain's metadata (namespace 1.1 or 1.0). Empty string: absent.
struct NovaMetadata {
  std::string instance_name;
  std::string flavor;
  std::string project_id;
  std::string project_name;
  std::string user_id;
  std::string user_name;
  bool operator==(const NovaMetadata&) const = default;
};

/// kvmscope's own metadata element, for hosts without nova:
/// <kvmscope:vm xmlns:kvmscope="https://kvmscope.dev/xmlns/vm/1.0" tenant="..." name="..."/>
struct OwnMetadata {
  std::string tenant;
  std::string name;
  bool operator==(const OwnMetadata&) const = default;
};

/// All that virt found out about one running domain. The unit in which VMs enter the daemon.
struct VmFacts {
  VmUuid uuid;
  std::string name;             ///< libvirt's domain name
  std::int32_t domain_id = -1;  ///< libvirt's running id
  ProcessKey process;           ///< the QEMU process, verified to be this domain's
  /// The scope's directory below the unified hierarchy ("/machine.slice/..."); empty where there is none.
  std::string cgroup_path;
  /// Inode numbers of that directory and all below it: the ids BPF sees. Empty without a unified hierarchy.
  std::vector<std::uint64_t> cgroup_ids;
  /// Processes in those cgroups besides QEMU (virtiofsd, swtpm): their I/O is the VM's too.
  std::vector<ProcessKey> helpers;
  std::vector<Disk> disks;
  std::vector<Nic> nics;
  std::uint32_t vcpus = 0;      ///< plugged in just now
  std::uint32_t max_vcpus = 0;  ///< with those that may be plugged in later
  std::optional<NovaMetadata> nova;
  std::optional<OwnMetadata> own;
  bool operator==(const VmFacts&) const = default;
};

}  // namespace kvmscope::core
