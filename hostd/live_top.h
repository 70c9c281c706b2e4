// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>

#include "hostd/core/result.h"
#include "hostd/views.h"

namespace kvmscope::hostd {

/// Shows reading after reading until SIGINT or SIGTERM. On a terminal the frame is redrawn in place, and the
/// last one stays on the screen; elsewhere each new reading is printed once. `json`: one object per line
/// instead. The first failure of `ask` ends it, except on a terminal, where a daemon that is being restarted
/// is waited for.
core::Result<void> live_top(const std::function<core::Result<TopView>()>& ask,
                            std::chrono::milliseconds interval, bool json, bool colours);

}  // namespace kvmscope::hostd
