// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "hostd/core/metric.h"
#include "hostd/core/series.h"

namespace kvmscope::bpf {

/// Which of the VM's own device numbers a kind is split by.
enum class DevSpace : std::uint8_t {
  vm,  ///< by nothing: one row
  disk,
  vcpu,
  nic,
  guest_disk,  ///< the domain's own disks, which no program knows: no rows in any map
};

/// One label of a sub: disk.io.direction = read.
struct SubLabel {
  std::string_view key;
  std::string_view value;
};

/// One sub of a kind: the labels its series carry.
struct Sub {
  std::span<const SubLabel> labels;
  /// Exported from the VM's start, even while nothing has happened; the others appear with their first event.
  bool always = false;
};

/// One row of the catalogue: a kind of series, its place in the inner maps and its name outside.
struct Kind {
  std::uint16_t id = 0;  ///< enum kv_kind in bpf/abi.h
  bool histogram = false;
  DevSpace dev_space = DevSpace::disk;
  std::span<const Sub> subs;
  /// Counters: what the cell's count means, nullptr if it is not exported. Histograms: the instrument itself.
  /// A counter in seconds is counted in nanoseconds.
  const core::Instrument* count = nullptr;
  /// Counters: what the cell's sum means, nullptr if it is not exported.
  const core::Instrument* sum = nullptr;
};

/// Rows that a kind has in maps of this shape.
std::uint16_t rows_of(const core::SlotShape& shape, DevSpace space);

/// Every kind there is, ordered by id: the one table that reader, exporters and docs/metrics.md go by.
std::span<const Kind> catalogue();

}  // namespace kvmscope::bpf
