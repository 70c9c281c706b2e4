// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "hostd/core/vm.h"

namespace kvmscope::virt {

/// Finds out how this host's kernel names the NIC's tap, in the network namespace of the caller, where
/// libvirt's are. A NIC that has an invisible_reason already stays as it is. A few system calls, none of
/// which waits.
void resolve_nic(core::Nic& nic);

}  // namespace kvmscope::virt
