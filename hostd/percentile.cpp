// SPDX-License-Identifier: Apache-2.0
#include "hostd/percentile.h"

#include <algorithm>
#include <cmath>

namespace kvmscope::hostd {
namespace {

constexpr double kBucketsPerOctave = 1 << core::kHistogramScale;

/// Where a share f of the bucket lies.
double inside_ns(std::size_t bucket, double f) {
  return 1e9 * std::exp2((core::kHistogramOffset + static_cast<double>(bucket) + f) / kBucketsPerOctave);
}

}  // namespace

std::optional<std::uint64_t> percentile_ns(const core::HistogramValue& delta, double q) {
  const std::uint64_t count = delta.count();
  if (count == 0) return std::nullopt;
  double rank = std::clamp(q, 0.0, 1.0) * static_cast<double>(count);
  double value = 0;
  const auto zero = static_cast<double>(delta.zero);
  if (delta.zero > 0) {
    value = inside_ns(0, 0) * std::min(1.0, rank / zero);
    if (rank <= zero) return static_cast<std::uint64_t>(std::llround(value));
  }
  rank -= zero;
  for (std::size_t i = 0; i < delta.buckets.size(); ++i) {
    if (delta.buckets[i] == 0) continue;
    const auto in_bucket = static_cast<double>(delta.buckets[i]);
    value = inside_ns(i, std::min(1.0, rank / in_bucket));
    if (rank <= in_bucket) break;
    rank -= in_bucket;
  }
  return static_cast<std::uint64_t>(std::llround(value));
}

}  // namespace kvmscope::hostd
