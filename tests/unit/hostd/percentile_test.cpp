// SPDX-License-Identifier: Apache-2.0
#include "hostd/percentile.h"

#include <cmath>

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

using core::HistogramValue;

/// ns at which bucket i begins: 2^(-20 + i/4) s.
double edge_ns(double i) {
  return 1e9 * std::exp2(-20 + i / 4);
}
std::uint64_t rounded(double ns) {
  return static_cast<std::uint64_t>(std::llround(ns));
}

TEST_CASE("No events, no percentile") {
  CHECK_FALSE(percentile_ns(HistogramValue{}, 0.5));
}

TEST_CASE("One bucket: from its beginning to its end on its own scale") {
  HistogramValue value;
  value.buckets[40] = 10;
  CHECK(percentile_ns(value, 0.0) == rounded(edge_ns(40)));
  CHECK(percentile_ns(value, 0.5) == rounded(edge_ns(40.5)));
  CHECK(percentile_ns(value, 1.0) == rounded(edge_ns(41)));
}

TEST_CASE("The rank decides on the bucket") {
  HistogramValue value;
  value.buckets[10] = 50;
  value.buckets[60] = 45;
  value.buckets[80] = 5;
  CHECK(percentile_ns(value, 0.50) == rounded(edge_ns(11)));
  CHECK(percentile_ns(value, 0.725) == rounded(edge_ns(60.5)));
  CHECK(percentile_ns(value, 0.95) == rounded(edge_ns(61)));
  CHECK(percentile_ns(value, 0.99) == rounded(edge_ns(80.8)));
}

TEST_CASE("Below the first bucket the scale is linear") {
  HistogramValue value;
  value.zero = 4;
  CHECK(percentile_ns(value, 0.0) == 0U);
  CHECK(percentile_ns(value, 0.5) == rounded(edge_ns(0) / 2));
  CHECK(percentile_ns(value, 1.0) == 954U);
  value.buckets[0] = 4;
  CHECK(percentile_ns(value, 0.5) == 954U);
  CHECK(percentile_ns(value, 0.75) == rounded(edge_ns(0.5)));
}

TEST_CASE("The last bucket ends at 128 s, a share is between 0 and 1, large counts are no trouble") {
  HistogramValue value;
  value.buckets[core::kHistogramBuckets - 1] = 1;
  CHECK(percentile_ns(value, 1.0) == 128'000'000'000U);
  CHECK(percentile_ns(value, 7.0) == 128'000'000'000U);
  CHECK(percentile_ns(value, -1.0) == rounded(edge_ns(107)));
  value.buckets[107] = std::uint64_t{1} << 62;
  CHECK(percentile_ns(value, 0.99) <= 128'000'000'000U);
}

TEST_CASE("A known delay lies inside its bucket's error") {
  HistogramValue value;
  // 20.5 ms: bucket floor(4 * log2(0.0205 / 2^-20)).
  value.buckets[static_cast<std::size_t>(std::floor(4 * std::log2(0.0205 * 1048576)))] = 1000;
  CHECK(static_cast<double>(*percentile_ns(value, 0.5)) == Approx(20.5e6).epsilon(0.19));
}

}  // namespace
}  // namespace kvmscope::hostd
