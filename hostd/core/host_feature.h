// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace kvmscope::core {

/// One thing about this host that tracing depends on: a line of `kvmscope check`.
struct HostFeature {
  std::string name;  ///< kernel, btf, tp_btf block_io_start, fentry, lsm, lockdown, bpffs, libvirt ...
  bool present = false;
  std::string detail;  ///< what was found
  std::string effect;  ///< what is degraded because of it; empty if nothing is
};

}  // namespace kvmscope::core
