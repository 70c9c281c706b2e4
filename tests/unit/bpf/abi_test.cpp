// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <boost/multiprecision/cpp_int.hpp>
#include <random>
#include <set>

#include "bpf/abi.h"
#include "bpf/catalogue.h"
#include "bpf/slot_maps.h"
#include "bpf/tracer.h"
#include "hostd/core/series.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf {
namespace {

using boost::multiprecision::cpp_int;

/// True if ns > 1e9 * 2^((k - 80) / 4): in integers, ns^4 * 2^80 > 1e36 * 2^k.
bool exceeds(std::uint64_t ns, unsigned k) {
  const cpp_int wide = ns;
  return (wide * wide * wide * wide << 80U) > (boost::multiprecision::pow(cpp_int(10), 36) << k);
}

/// Straight from OTLP's definition: how many of the bounds the delay exceeds.
std::uint32_t reference_bucket(std::uint64_t ns) {
  std::uint32_t index = 0;
  while (index < KV_BUCKETS && exceeds(ns, index)) ++index;
  return index;
}

TEST_CASE("each bound is the whole part of its true value") {
  for (unsigned k = 0; k <= KV_BUCKETS; ++k) {
    INFO("bound " << k);
    REQUIRE_FALSE(exceeds(kv_bounds[k], k));
    REQUIRE(exceeds(kv_bounds[k] + 1, k));
  }
  REQUIRE(kv_bounds[80] == 1'000'000'000);
  REQUIRE(kv_bounds[KV_BUCKETS] == 128'000'000'000);
}

TEST_CASE("a delay's bucket is OTLP's, at every bound and anywhere between") {
  for (const std::uint64_t bound : kv_bounds) {
    for (const std::uint64_t ns : {bound - 1, bound, bound + 1})
      REQUIRE(kv_bucket(ns) == reference_bucket(ns));
  }
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t power = std::uint64_t{1} << bit;
    for (const std::uint64_t ns : {power - 1, power, power + 1})
      REQUIRE(kv_bucket(ns) == reference_bucket(ns));
  }
  REQUIRE(kv_bucket(~std::uint64_t{0}) == KV_BUCKETS);
  std::mt19937_64 random(7);
  for (int i = 0; i < 20'000; ++i) {
    const std::uint64_t ns = random() >> (random() % 64);
    INFO(ns);
    REQUIRE(kv_bucket(ns) == reference_bucket(ns));
  }
}

TEST_CASE("the histogram's constants are the same inside and outside") {
  STATIC_REQUIRE(core::kHistogramBuckets == KV_BUCKETS);
  STATIC_REQUIRE(core::kHistogramOffset == -80);
  STATIC_REQUIRE(core::kHistogramScale == 2);
}

TEST_CASE("files of one device never share a key, and no key is 0") {
  std::set<std::uint64_t> keys;
  for (std::uint64_t inode = 0; inode < 100'000; ++inode) keys.insert(disk_key(8, 1, inode).value);
  REQUIRE(keys.size() == 100'000);
  REQUIRE_FALSE(keys.contains(0));
  REQUIRE(disk_key(8, 1, 5) != disk_key(8, 2, 5));
  REQUIRE(disk_key(0, 0, 0).value != 0);
}

TEST_CASE("the catalogue is ordered by id and complete") {
  const auto kinds = catalogue();
  REQUIRE(kinds.size() == KV_KINDS);
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    REQUIRE(kinds[i].id == i);
    REQUIRE_FALSE(kinds[i].subs.empty());
    const bool kept_for_another = kinds[i].id == KV_NIC_QUEUE;  // for the queue's depth
    REQUIRE((kinds[i].count != nullptr || kinds[i].sum != nullptr || kept_for_another));
    std::set<std::string> labels;
    for (const Sub& sub : kinds[i].subs) {
      std::string all;
      for (const SubLabel& label : sub.labels)
        all += std::string(label.key) + "=" + std::string(label.value) + ",";
      labels.insert(all);
    }
    REQUIRE(labels.size() == kinds[i].subs.size());
  }
}

TEST_CASE("a layout gives every series a cell of its own, beside the headers") {
  for (const std::uint16_t disks : {std::uint16_t{1}, std::uint16_t{4}, std::uint16_t{33}}) {
    const SlotLayout layout = layout_of({.disks = disks});
    std::set<std::uint32_t> counters;
    std::set<std::uint32_t> histograms;
    std::size_t series = 0;
    for (const Kind& kind : catalogue()) {
      const kv_header& header = layout.headers[kind.id];
      for (std::uint32_t cell = 0; cell < std::uint32_t{header.devs} * header.subs; ++cell, ++series) {
        (kind.histogram ? histograms : counters).insert(header.base + cell);
      }
    }
    REQUIRE(counters.size() + histograms.size() == series);
    REQUIRE(*counters.begin() == KV_KINDS);
    REQUIRE(*counters.rbegin() + 1 == layout.counter_cells);
    REQUIRE(*histograms.begin() == 1);
    REQUIRE(*histograms.rbegin() + 1 == layout.histogram_cells);
  }
}

}  // namespace
}  // namespace kvmscope::bpf
