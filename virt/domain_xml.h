// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hostd/core/result.h"
#include "hostd/core/vm.h"

namespace kvmscope::virt {

/// A disk's images besides its top one: backing files, external data files, the target of a running block job
/// with its own. The disk's XML is not trusted to end: what is beyond this many is left out.
inline constexpr std::size_t kMaxMoreImages = 64;

struct DomainXml {
  /// All of VmFacts but process and cgroups. A disk has either a path in `source`, still to be looked at by
  /// resolve_disk(), or an `invisible_reason`. domain_id is -1 for a domain that does not run.
  core::VmFacts facts;
  /// For each disk of facts.disks the paths of its other images, top down, no path twice.
  std::vector<std::vector<std::string>> more_images;
  std::string emulator;  ///< path of the QEMU binary, or of a script that starts it
  /// The user that its QEMU runs as (the DAC label). Empty: libvirt does not say, as in a session.
  std::optional<std::uint32_t> user;
  bool operator==(const DomainXml&) const = default;
};

/// Elements that we do not know are ignored; what breaks the format, or has no name or UUID, is an error.
/// Also takes libvirt's own status file, which has the live domain inside a <domstatus>.
core::Result<DomainXml> parse_domain_xml(std::string_view xml);

}  // namespace kvmscope::virt
