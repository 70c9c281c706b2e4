// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kvmscope::virt {

/// How long CPU quotas kept a VM's threads from running, since its cgroups were made. The kernel counts that
/// into the threads' wait for a CPU; it is no steal.
struct CpuThrottle {
  std::uint64_t vm_ns = 0;             ///< by a quota on the whole VM, summed over CPUs
  std::vector<std::uint64_t> vcpu_ns;  ///< by a quota on the vCPU's own cgroup; index = vCPU
};

/// Reads cpu.stat below the VM's directory of the unified hierarchy (VmFacts::cgroup_path on its root). What
/// is not there (no CPU controller, a vCPU not plugged in, the VM gone) is 0. Two files where no quota is
/// set.
CpuThrottle read_cpu_throttle(const std::string& directory, std::uint32_t vcpus);

}  // namespace kvmscope::virt
