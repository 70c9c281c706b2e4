// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "hostd/core/result.h"

namespace kvmscope::virt {

/// The whole of a file in proc or cgroup, whose size nobody tells beforehand. resource_exhausted above 4 MiB.
core::Result<std::string> read_file(const std::string& path);

}  // namespace kvmscope::virt
