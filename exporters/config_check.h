// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "exporters/stream.h"
#include "hostd/core/result.h"

namespace kvmscope::exporters {

/// Whether a stream can be made of this at all. Looks at no file: credentials may come later.
core::Result<void> check(const StreamConfig& config);

}  // namespace kvmscope::exporters
