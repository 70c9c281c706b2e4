// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hostd/core/series.h"
#include "hostd/views.h"
#include "hostd/vm_series.h"
#include "tenancy/registry.h"

namespace kvmscope::hostd {

/// The rates and percentiles of the last interval, from the difference of two readings: what `kvmscope top`
/// shows.
class TopTracker {
 public:
  /// A new interval's readings follow; end() makes them what view() returns.
  void begin(std::uint64_t unix_ns) { next_ = {.time_unix_ns = unix_ns, .rows = {}, .cpus = {}, .nics = {}}; }
  void observe(const tenancy::Epoch& epoch, std::span<const VmReading::Row> rows, std::uint64_t monotonic_ns);
  void end() { view_ = std::move(next_); }
  /// The epoch is over.
  void forget(const tenancy::Epoch& epoch) { before_.erase(epoch.serial); }

  const TopView& view() const { return view_; }

 private:
  /// One disk and direction of a VM at one reading.
  struct Totals {
    core::CounterValue io;
    std::uint64_t errors = 0;
    core::HistogramValue duration;
    core::HistogramValue queue;
  };
  using Key = std::pair<std::string, std::string>;  ///< disk, direction
  /// One vCPU or class of threads of a VM at one reading.
  struct CpuTotals {
    std::uint64_t run_ns = 0;
    std::uint64_t steal_ns = 0;
    std::uint64_t throttled_ns = 0;
    std::optional<std::uint64_t> exits;
    core::HistogramValue delay;
  };
  /// One NIC of a VM at one reading.
  struct NicTotals {
    core::CounterValue received;
    core::CounterValue sent;
    std::uint64_t dropped = 0;
    std::uint64_t waiting = 0;
    core::HistogramValue wait;
  };
  struct Reading {
    std::uint64_t monotonic_ns = 0;
    std::map<Key, Totals> totals;
    std::map<std::string, CpuTotals> cpus;  ///< by thread
    std::map<std::string, NicTotals> nics;  ///< by name
  };

  static std::map<Key, Totals> totals_of(std::span<const VmReading::Row> rows);
  static std::map<std::string, CpuTotals> cpus_of(std::span<const VmReading::Row> rows);

  static std::map<std::string, NicTotals> nics_of(std::span<const VmReading::Row> rows);

  std::unordered_map<std::uint64_t, Reading> before_;  ///< by the epoch's serial
  TopView view_;
  TopView next_;
};

}  // namespace kvmscope::hostd
