// SPDX-License-Identifier: Apache-2.0
#include "bpf/slot_maps.h"

#include <bpf/bpf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "bpf/catalogue.h"

namespace kvmscope::bpf {
namespace {

using core::Error;
using core::fail;
using core::Result;
using core::UniqueFd;

Result<UniqueFd> create_inner(const char* name, std::uint32_t value_bytes, std::uint32_t cells) {
  LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = BPF_F_INNER_MAP | BPF_F_MMAPABLE);
  const int fd =
      bpf_map_create(BPF_MAP_TYPE_ARRAY, name, sizeof(std::uint32_t), value_bytes, cells, &options);
  if (fd < 0) return fail(Error::from_errno(std::string("create inner map ") + name, -fd));
  return UniqueFd(fd);
}

std::uint64_t load(const __u64& cell) {
  return __atomic_load_n(&cell, __ATOMIC_RELAXED);
}

}  // namespace

DiskKey disk_key(std::uint32_t device_major, std::uint32_t device_minor, std::uint64_t inode) {
  return DiskKey{kv_disk_key(device_major << 20 | device_minor, inode)};
}

NicKey nic_key(std::uint32_t netns, std::uint32_t ifindex) {
  return NicKey{kv_nic_key(netns, ifindex)};
}

SlotLayout layout_of(const SlotShape& shape) {
  SlotLayout layout{.counter_cells = KV_KINDS, .histogram_cells = 1};
  for (const Kind& kind : catalogue()) {
    std::uint32_t& cells = kind.histogram ? layout.histogram_cells : layout.counter_cells;
    kv_header& header = layout.headers[kind.id];
    header.base = cells;
    header.devs = rows_of(shape, kind.dev_space);
    header.subs = static_cast<std::uint16_t>(kind.subs.size());
    cells += std::uint32_t{header.devs} * header.subs;
  }
  return layout;
}

Result<MapView> MapView::open(int map_fd, std::size_t bytes, bool writable) {
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t rounded = (bytes + page - 1) / page * page;
  void* data = ::mmap(nullptr, rounded, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, map_fd, 0);
  if (data == MAP_FAILED) return fail(Error::from_errno("map a BPF array"));
  return MapView(static_cast<std::byte*>(data), rounded);
}

MapView::MapView(MapView&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

MapView& MapView::operator=(MapView&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MapView::~MapView() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

Result<std::unique_ptr<SlotMaps::Impl>> SlotMaps::Impl::create(core::SlotIdentity identity,
                                                               core::Incarnation incarnation,
                                                               SlotShape shape) {
  auto impl = std::make_unique<Impl>();
  impl->identity = identity;
  impl->incarnation = incarnation;
  impl->shape = shape;
  impl->layout = layout_of(shape);
  for (kv_header& header : impl->layout.headers) {
    header.generation = identity.generation.value;
    header.incarnation = incarnation.value;
  }
  const SlotLayout& layout = impl->layout;
  auto counters = create_inner("slot_counters", sizeof(kv_counter), layout.counter_cells);
  if (!counters) return fail(counters.error());
  auto histograms = create_inner("slot_histograms", sizeof(kv_histogram), layout.histogram_cells);
  if (!histograms) return fail(histograms.error());
  // The headers are written through a mapping of their own, that is gone before any program sees the maps.
  {
    auto head = MapView::open(counters->get(), sizeof(layout.headers), true);
    if (!head) return fail(head.error());
    std::ranges::copy(layout.headers, reinterpret_cast<kv_header*>(head->data()));
    head = MapView::open(histograms->get(), sizeof(layout.headers), true);
    if (!head) return fail(head.error());
    std::ranges::copy(layout.headers, reinterpret_cast<kv_header*>(head->data()));
  }
  auto counters_view = MapView::open(counters->get(), sizeof(kv_counter) * layout.counter_cells);
  if (!counters_view) return fail(counters_view.error());
  auto histograms_view = MapView::open(histograms->get(), sizeof(kv_histogram) * layout.histogram_cells);
  if (!histograms_view) return fail(histograms_view.error());
  impl->counters_fd = std::move(*counters);
  impl->histograms_fd = std::move(*histograms);
  impl->counters = std::move(*counters_view);
  impl->histograms = std::move(*histograms_view);
  return impl;
}

const kv_histogram& SlotMaps::Impl::histogram_cell(core::SeriesId id) const {
  const kv_header& header = layout.headers[id.kind];
  return reinterpret_cast<const kv_histogram*>(
      histograms.data())[header.base + id.dev * header.subs + id.sub];
}

SlotMaps::SlotMaps(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SlotMaps::SlotMaps(SlotMaps&&) noexcept = default;
SlotMaps& SlotMaps::operator=(SlotMaps&&) noexcept = default;
SlotMaps::~SlotMaps() = default;

core::SlotIdentity SlotMaps::identity() const {
  return impl_->identity;
}
core::Incarnation SlotMaps::incarnation() const {
  return impl_->incarnation;
}
const SlotShape& SlotMaps::shape() const {
  return impl_->shape;
}

core::CounterValue SlotMaps::counter(core::SeriesId id) const {
  const kv_header& header = impl_->layout.headers[id.kind];
  const auto* cells = reinterpret_cast<const kv_counter*>(impl_->counters.data());
  const kv_counter& cell = cells[header.base + id.dev * header.subs + id.sub];
  return {.count = load(cell.count), .sum = load(cell.sum)};
}

void SlotMaps::histogram(core::SeriesId id, core::HistogramValue& out) const {
  static_assert(core::kHistogramBuckets == KV_BUCKETS);
  const kv_histogram& cell = impl_->histogram_cell(id);
  out.sum_ns = load(cell.sum_ns);
  out.zero = load(cell.counts[0]);
  for (std::size_t i = 0; i < core::kHistogramBuckets; ++i) out.buckets[i] = load(cell.counts[1 + i]);
}

bool SlotMaps::histogram_empty(core::SeriesId id) const {
  const kv_histogram& cell = impl_->histogram_cell(id);
  if (load(cell.sum_ns) != 0) return false;
  return std::ranges::none_of(cell.counts, [](const __u64& count) { return load(count) != 0; });
}

}  // namespace kvmscope::bpf
