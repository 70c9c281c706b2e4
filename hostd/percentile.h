// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>

#include "hostd/core/series.h"

namespace kvmscope::hostd {

/// The delay that a share q (0 to 1) of the histogram's events did not exceed, in ns; nothing if there were
/// no events. Inside a bucket the events are taken to lie evenly on the bucket's own, logarithmic scale
/// (evenly on a linear one below 954 ns), so the answer is at most 19 % off. What is beyond the last bucket
/// counts as 128 s.
std::optional<std::uint64_t> percentile_ns(const core::HistogramValue& delta, double q);

}  // namespace kvmscope::hostd
