// SPDX-License-Identifier: Apache-2.0
#include "tenancy/ledger.h"

#include <random>

#include "tests/support/catch.h"

namespace kvmscope::tenancy {
namespace {

constexpr core::SeriesId kReads{1, 0, 0};
constexpr core::SeriesId kWrites{1, 0, 1};

TEST_CASE("without a closed incarnation a total is the live value") {
  const EpochTotals totals;
  REQUIRE(totals.empty());
  REQUIRE(totals.total(kReads, {3, 300}) == core::CounterValue{3, 300});
  core::HistogramValue live;
  live.buckets[5] = 7;
  const core::HistogramValue before = live;
  totals.add_closed(kReads, live);
  REQUIRE(live == before);
}

TEST_CASE("a total is the sum over incarnations, each series by itself") {
  EpochTotals totals;
  totals.fold(kReads, core::CounterValue{10, 1000});
  totals.fold(kReads, core::CounterValue{5, 50});
  totals.fold(kWrites, core::CounterValue{1, 1});
  REQUIRE(totals.total(kReads, {2, 20}) == core::CounterValue{17, 1070});
  REQUIRE(totals.total(kReads, {}) == core::CounterValue{15, 1050});
  REQUIRE(totals.total(kWrites, {}) == core::CounterValue{1, 1});
  REQUIRE(totals.total({1, 1, 0}, {9, 9}) == core::CounterValue{9, 9});  // another disk
  REQUIRE(totals.total({2, 0, 0}, {9, 9}) == core::CounterValue{9, 9});  // another kind
  REQUIRE_FALSE(totals.empty());
}

TEST_CASE("histograms add bucket by bucket, zero and sum too") {
  EpochTotals totals;
  core::HistogramValue closed;
  closed.sum_ns = 100;
  closed.zero = 1;
  closed.buckets[0] = 2;
  closed.buckets[core::kHistogramBuckets - 1] = 3;
  totals.fold(kReads, closed);
  totals.fold(kReads, closed);
  core::HistogramValue live;
  live.sum_ns = 7;
  live.buckets[0] = 1;
  totals.add_closed(kReads, live);
  REQUIRE(live.sum_ns == 207);
  REQUIRE(live.zero == 2);
  REQUIRE(live.buckets[0] == 5);
  REQUIRE(live.buckets[core::kHistogramBuckets - 1] == 6);
  REQUIRE(live.count() == 13);
}

TEST_CASE("however one stream of events is cut into incarnations, the totals are the same") {
  const auto seed = GENERATE(range(1U, 41U));
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto below = [&random](std::uint32_t n) {
    return std::uniform_int_distribution<std::uint32_t>(0, n - 1)(random);
  };

  core::CounterValue whole_counter;
  core::CounterValue live_counter;
  core::HistogramValue whole_histogram;
  core::HistogramValue live_histogram;
  EpochTotals totals;
  std::uint64_t last_count = 0;
  const std::uint32_t cut_every = 1 + below(200);
  for (int i = 0; i < 3000; ++i) {
    const std::uint64_t bytes = below(1U << 20);
    const std::size_t bucket = below(core::kHistogramBuckets);
    for (core::CounterValue* counter : {&whole_counter, &live_counter}) *counter += {1, bytes};
    for (core::HistogramValue* histogram : {&whole_histogram, &live_histogram}) {
      histogram->sum_ns += bytes;
      ++(bytes % 5 == 0 ? histogram->zero : histogram->buckets[bucket]);
    }
    if (below(cut_every) == 0) {  // growth: a fresh incarnation starts at nothing
      totals.fold(kReads, std::exchange(live_counter, {}));
      totals.fold(kReads, std::exchange(live_histogram, {}));
    }
    const core::CounterValue total = totals.total(kReads, live_counter);
    REQUIRE(total.count == last_count + 1);  // monotonic across every cut
    last_count = total.count;
  }
  REQUIRE(totals.total(kReads, live_counter) == whole_counter);
  core::HistogramValue exported = live_histogram;
  totals.add_closed(kReads, exported);
  REQUIRE(exported == whole_histogram);
}

}  // namespace
}  // namespace kvmscope::tenancy
