// SPDX-License-Identifier: Apache-2.0
#include "tenancy/ledger.h"

namespace kvmscope::tenancy {

void EpochTotals::fold(core::SeriesId id, const core::CounterValue& final_value) {
  counters_[id] += final_value;
}

void EpochTotals::fold(core::SeriesId id, const core::HistogramValue& final_value) {
  histograms_[id] += final_value;
}

core::CounterValue EpochTotals::total(core::SeriesId id, const core::CounterValue& live) const {
  core::CounterValue sum = live;
  if (const auto closed = counters_.find(id); closed != counters_.end()) sum += closed->second;
  return sum;
}

void EpochTotals::add_closed(core::SeriesId id, core::HistogramValue& live) const {
  if (const auto closed = histograms_.find(id); closed != histograms_.end()) live += closed->second;
}

}  // namespace kvmscope::tenancy
