// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "hostd/core/vm.h"

namespace kvmscope::virt {

/// Finds out how the host's block layer names a disk, from the path in `source` (symlinks followed). A disk
/// that has an invisible_reason already stays as it is. May block as long as the file system does.
void resolve_disk(core::Disk& disk);

}  // namespace kvmscope::virt
