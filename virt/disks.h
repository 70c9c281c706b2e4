// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "hostd/core/vm.h"

namespace kvmscope::virt {

/// Finds out how the host's block layer names a disk, from the path in `source` (symlinks followed). A disk
/// that has an invisible_reason already stays as it is. The images of `more_images` go into the disk's own
/// list, as far as a host block request can name them. May block as long as the file systems do.
void resolve_disk(core::Disk& disk, const std::vector<std::string>& more_images = {});

}  // namespace kvmscope::virt
