// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace kvmscope::virt {

/// Where the host's own records of a domain are.
struct HostPaths {
  std::string proc_root;
  std::string cgroup_root;  ///< empty: no unified hierarchy
  std::string run_dir;
};

}  // namespace kvmscope::virt
