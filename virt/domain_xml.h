// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

#include "hostd/core/result.h"
#include "hostd/core/vm.h"

namespace kvmscope::virt {

/// What a domain's XML says: all of VmFacts but process and cgroups. A disk has either a path in `source`,
/// still to be looked at by resolve_disk(), or an `invisible_reason`. domain_id is -1 for a domain that does
/// not run. Elements that we do not know are ignored; what breaks the format, or has no name or UUID, is an
/// error.
core::Result<core::VmFacts> parse_domain_xml(std::string_view xml);

}  // namespace kvmscope::virt
