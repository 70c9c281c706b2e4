// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "bpf/abi.h"
#include "bpf/tracer.h"
#include "hostd/core/unique_fd.h"

namespace kvmscope::bpf {

/// Where everything is in a slot's pair of inner maps: follows from the shape and the catalogue alone.
struct SlotLayout {
  std::array<kv_header, KV_KINDS> headers{};  ///< of both maps; generation and incarnation still 0
  std::uint32_t counter_cells = 0;
  std::uint32_t histogram_cells = 0;
};
SlotLayout layout_of(const SlotShape& shape);

/// A read-only mapping of a BPF array.
class MapView {
 public:
  static core::Result<MapView> open(int map_fd, std::size_t bytes, bool writable = false);
  MapView() = default;
  MapView(MapView&& other) noexcept;
  MapView& operator=(MapView&& other) noexcept;
  ~MapView();
  std::byte* data() const { return data_; }

 private:
  MapView(std::byte* data, std::size_t bytes) : data_(data), bytes_(bytes) {}
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

struct SlotMaps::Impl {
  core::SlotIdentity identity;
  core::Incarnation incarnation;
  SlotShape shape;
  SlotLayout layout;
  core::UniqueFd counters_fd;
  core::UniqueFd histograms_fd;
  MapView counters;
  MapView histograms;

  /// Creates both maps with their headers written; nobody else sees them yet.
  static core::Result<std::unique_ptr<Impl>> create(core::SlotIdentity identity,
                                                    core::Incarnation incarnation, SlotShape shape);
  const kv_histogram& histogram_cell(core::SeriesId id) const;
};

}  // namespace kvmscope::bpf
