// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hostd/core/ids.h"

namespace kvmscope::virt {

/// What QEMU has done for its guest in one direction, since QEMU's start.
struct GuestOperations {
  std::uint64_t operations = 0;
  std::uint64_t bytes = 0;    ///< 0 for flushes
  std::uint64_t time_ns = 0;  ///< from the guest's request to its answer, added up
  bool operator==(const GuestOperations&) const = default;
};

/// One disk as QEMU's block statistics have it, whatever it is kept on.
struct GuestDisk {
  std::string target;  ///< as in the domain's XML: vda
  GuestOperations read;
  GuestOperations write;
  GuestOperations flush;
  bool operator==(const GuestDisk&) const = default;
};

/// A domain's disks at one moment.
struct BlockReading {
  core::VmUuid uuid;
  std::int32_t domain_id = -1;  ///< libvirt's running id: another QEMU has another
  /// Before libvirt was asked: the values are no older.
  std::uint64_t asked_unix_ns = 0;
  std::vector<GuestDisk> disks;
};

/// One value of libvirt's statistics: "block.0.rd.reqs".
struct StatField {
  std::string name;
  std::string text;          ///< of names
  std::uint64_t number = 0;  ///< of the others
};

/// The disks among a domain's statistics (virConnectGetAllDomainStats, VIR_DOMAIN_STATS_BLOCK). Pure. Images
/// below the top one, which have no target of their own, are left out; so is what makes no sense, and every
/// disk without all its numbers: of a domain that cannot be asked just now libvirt still tells their names.
std::vector<GuestDisk> guest_disks(const std::vector<StatField>& fields);

}  // namespace kvmscope::virt
