// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <unordered_map>

#include "hostd/core/ids.h"
#include "hostd/core/series.h"

namespace kvmscope::tenancy {

/// What an epoch's closed incarnations add up to. A series' total is this plus the live incarnation's raw
/// value.
class EpochTotals {
 public:
  /// The epoch's incarnation has ended with these final raw values.
  void fold(core::SeriesId id, const core::CounterValue& final_value);
  void fold(core::SeriesId id, const core::HistogramValue& final_value);

  /// For what the daemon itself reads as a running total and no map counts.
  void set(core::SeriesId id, const core::CounterValue& total) { counters_[id] = total; }

  core::CounterValue total(core::SeriesId id, const core::CounterValue& live) const;
  /// Adds what is closed to `live`, in place; without any closed incarnation nothing is touched.
  void add_closed(core::SeriesId id, core::HistogramValue& live) const;

  const std::unordered_map<core::SeriesId, core::CounterValue>& counters() const { return counters_; }
  const std::unordered_map<core::SeriesId, core::HistogramValue>& histograms() const { return histograms_; }
  bool empty() const { return counters_.empty() && histograms_.empty(); }

 private:
  std::unordered_map<core::SeriesId, core::CounterValue> counters_;
  std::unordered_map<core::SeriesId, core::HistogramValue> histograms_;
};

}  // namespace kvmscope::tenancy
