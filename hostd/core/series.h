// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace kvmscope::core {

/// One aggregate inside a slot: row of the catalogue, the VM's own number of the device, and what it is split
/// by.
struct SeriesId {
  std::uint16_t kind = 0;
  std::uint16_t dev = 0;
  std::uint16_t sub = 0;
  auto operator<=>(const SeriesId&) const = default;
};

/// How many rows of each device space a slot's inner maps have. The last row collects all devices beyond
/// ("other").
struct SlotShape {
  std::uint16_t disks = 4;
  std::uint16_t vcpus = 5;
  std::uint16_t nics = 3;
  bool operator==(const SlotShape&) const = default;
  bool covers(const SlotShape& other) const {
    return disks >= other.disks && vcpus >= other.vcpus && nics >= other.nics;
  }
  /// The smallest that covers both.
  SlotShape with(const SlotShape& other) const {
    return {.disks = disks > other.disks ? disks : other.disks,
            .vcpus = vcpus > other.vcpus ? vcpus : other.vcpus,
            .nics = nics > other.nics ? nics : other.nics};
  }
};

/// A counter's cell: how often, and how much (bytes, ns; the catalogue says).
struct CounterValue {
  std::uint64_t count = 0;
  std::uint64_t sum = 0;
  CounterValue& operator+=(const CounterValue& other) {
    count += other.count;
    sum += other.sum;
    return *this;
  }
  bool operator==(const CounterValue&) const = default;
};

/// OTLP scale of every histogram: four buckets an octave, exact (8.6 % at worst from a bucket's middle).
inline constexpr int kHistogramScale = 2;
/// OTLP index of bucket 0: it covers (2^-20 s, 2^-19.75 s]; all at or below 2^-20 s (954 ns) is in `zero`.
inline constexpr int kHistogramOffset = -80;
/// The last bucket ends at 2^7 s (128 s) and also holds all above.
inline constexpr std::size_t kHistogramBuckets = 108;

/// A histogram of delays. Its count is the sum of zero and buckets; the sum may differ by updates in flight.
struct HistogramValue {
  std::uint64_t sum_ns = 0;
  std::uint64_t zero = 0;
  std::array<std::uint64_t, kHistogramBuckets> buckets{};

  std::uint64_t count() const {
    std::uint64_t total = zero;
    for (const std::uint64_t bucket : buckets) total += bucket;
    return total;
  }
  HistogramValue& operator+=(const HistogramValue& other) {
    sum_ns += other.sum_ns;
    zero += other.zero;
    for (std::size_t i = 0; i < kHistogramBuckets; ++i) buckets[i] += other.buckets[i];
    return *this;
  }
  bool operator==(const HistogramValue&) const = default;
};

}  // namespace kvmscope::core

template <>
struct std::hash<kvmscope::core::SeriesId> {
  std::size_t operator()(const kvmscope::core::SeriesId& id) const {
    return (std::size_t{id.kind} << 32) | (std::size_t{id.dev} << 16) | id.sub;
  }
};
