// SPDX-License-Identifier: Apache-2.0
#include "hostd/vm_series.h"

#include <algorithm>

#include "bpf/abi.h"

namespace kvmscope::hostd {
namespace {

DeviceLabel& label_named(std::vector<DeviceLabel>& labels, const std::string& name) {
  const auto found = std::ranges::find(labels, name, &DeviceLabel::name);
  if (found != labels.end()) return *found;
  return labels.emplace_back(
      DeviceLabel{.space = bpf::DevSpace::disk, .name = name, .mac = {}, .devs = {}, .of_domain = false});
}

constexpr const char* kUnresolved = "unresolved";

bool has_key(const core::Disk& disk, bpf::DiskKey key) {
  const auto keys = keys_of(disk);
  return std::ranges::find(keys, key) != keys.end();
}

/// The name under which what this key counts is exported; empty if it is no disk's.
std::string name_of(const core::VmFacts& facts, bpf::DiskKey key) {
  for (const core::Disk& disk : facts.disks) {
    if (has_key(disk, key)) return disk.target;
  }
  for (const core::Disk& disk : facts.disks) {
    if (disk.backing != core::DiskBacking::file) continue;
    if (bpf::disk_key(disk.device_major, disk.device_minor, 0) == key) return kUnresolved;
  }
  return {};
}

/// Each once, in the catalogue's order: some are of several kinds.
const std::vector<const core::Instrument*>& instruments() {
  static const std::vector<const core::Instrument*> all = [] {
    std::vector<const core::Instrument*> found;
    for (const bpf::Kind& kind : bpf::catalogue()) {
      for (const core::Instrument* instrument : {kind.count, kind.sum}) {
        if (instrument != nullptr && std::ranges::find(found, instrument) == found.end()) {
          found.push_back(instrument);
        }
      }
    }
    return found;
  }();
  return all;
}

/// The row of a device in this incarnation, or none: the last row is everybody's beyond it.
std::optional<std::uint16_t> row_of(bpf::DevSpace space, std::uint16_t dev, std::uint16_t rows) {
  if (space == bpf::DevSpace::vm) return dev;
  if (dev == kOtherDevice) return static_cast<std::uint16_t>(rows - 1);
  if (dev + 1 < rows) return dev;
  return std::nullopt;
}

}  // namespace

std::vector<bpf::DiskKey> keys_of(const core::Disk& disk) {
  std::vector<bpf::DiskKey> keys;
  const auto add = [&keys](const auto& image) {
    if (image.backing == core::DiskBacking::invisible) return;
    const std::uint64_t inode = image.backing == core::DiskBacking::file ? image.inode : 0;
    keys.push_back(bpf::disk_key(image.device_major, image.device_minor, inode));
  };
  add(disk);
  std::ranges::for_each(disk.more_images, add);
  return keys;
}

std::vector<DeviceLabel> label_disks(const core::VmFacts* facts, std::span<const bpf::NumberedDisk> devices,
                                     bool last_chance, DeviceNames& names) {
  std::vector<DeviceLabel> labels;
  const bool stacked = std::ranges::any_of(devices, &bpf::NumberedDisk::stacked);
  if (facts != nullptr) {
    for (const core::Disk& disk : facts->disks) {
      if (disk.backing != core::DiskBacking::invisible) label_named(labels, disk.target).of_domain = true;
    }
  }
  for (std::size_t dev = 0; dev < devices.size(); ++dev) {
    const bpf::NumberedDisk& device = devices[dev];
    // Below a stacked device its requests are seen once more: as far as nobody says which is which, what is
    // stacked counts.
    const bool counts = !stacked || device.stacked || device.direct_file;
    std::string name = facts == nullptr && counts ? kUnresolved : std::string();
    if (const auto given = names.find(device.key); given != names.end()) {
      name = given->second;
    } else if (facts != nullptr) {
      name = name_of(*facts, device.key);
      if (!name.empty()) names.emplace(device.key, name);
      if (name.empty() && last_chance && device.direct_file) name = kUnresolved;
    }
    if (name.empty()) continue;
    DeviceLabel& label = label_named(labels, name);
    label.devs.push_back(static_cast<std::uint16_t>(dev));
    if (name != kUnresolved) label.of_domain = true;
  }
  label_named(labels, "other").devs.push_back(kOtherDevice);
  return labels;
}

std::vector<DeviceLabel> label_nics(const core::VmFacts* facts, std::span<const bpf::NicKey> nics,
                                    std::uint64_t now_ns, bool last_chance, NicNames& names) {
  std::vector<DeviceLabel> labels;
  const auto add = [&labels](const NicName& name, bool of_domain) -> DeviceLabel& {
    const auto found = std::ranges::find_if(
        labels, [&](const DeviceLabel& label) { return label.name == name.alias && label.mac == name.mac; });
    if (found != labels.end()) return *found;
    return labels.emplace_back(DeviceLabel{.space = bpf::DevSpace::nic,
                                           .name = name.alias,
                                           .mac = name.mac,
                                           .devs = {},
                                           .of_domain = of_domain});
  };
  if (facts != nullptr) {
    for (const core::Nic& nic : facts->nics) {
      if (nic.ifindex == 0) continue;
      const bpf::NicKey key = bpf::nic_key(nic.netns, nic.ifindex);
      NicName& name = names[key];
      if (name.alias.empty()) name = {.alias = nic.alias, .mac = nic.mac};
      const bool numbered = nics.size() < KV_MAX_NICS || std::ranges::find(nics, key) != nics.end();
      if (numbered) add(name, true);
    }
  }
  for (std::size_t dev = 0; dev < nics.size(); ++dev) {
    NicName name{.alias = kUnresolved, .mac = {}};
    if (facts != nullptr) {
      NicName& given =
          names.try_emplace(nics[dev], NicName{.alias = {}, .mac = {}, .seen_ns = now_ns}).first->second;
      if (given.alias.empty() && (last_chance || now_ns - given.seen_ns >= kNicNamedWithinNs)) given = name;
      if (given.alias.empty()) continue;
      name = given;
    }
    add(name, name.alias != kUnresolved).devs.push_back(static_cast<std::uint16_t>(dev));
  }
  add({.alias = "other", .mac = {}}, false).devs.push_back(kOtherDevice);
  return labels;
}

void GuestDisks::read(const virt::BlockReading& reading, bool from_zero, std::uint64_t epoch_start_unix_ns,
                      tenancy::EpochTotals& totals) {
  if (until_unix_ns_ == 0) since_unix_ns_ = from_zero ? epoch_start_unix_ns : reading.asked_unix_ns;
  const bool begins = until_unix_ns_ == 0 && !from_zero;
  until_unix_ns_ = reading.asked_unix_ns;
  for (Disk& known : disks_) {
    if (std::ranges::find(reading.disks, known.target, &virt::GuestDisk::target) == reading.disks.end())
      known.last.reset();
  }
  for (const virt::GuestDisk& now : reading.disks) {
    const auto found = std::ranges::find(disks_, now.target, &Disk::target);
    const auto dev = static_cast<std::uint16_t>(found - disks_.begin());
    Disk& disk = found == disks_.end() ? disks_.emplace_back(Disk{now.target, std::nullopt}) : *found;
    const auto fell = [](const virt::GuestOperations& value, const virt::GuestOperations& before) {
      return value.operations < before.operations || value.bytes < before.bytes;
    };
    virt::GuestDisk before = disk.last.value_or(begins ? now : virt::GuestDisk{});
    if (fell(now.read, before.read) || fell(now.write, before.write) || fell(now.flush, before.flush))
      before = {};  // another one, that was plugged in between
    add(dev, KV_READ, now.read, before.read, totals);
    add(dev, KV_WRITE, now.write, before.write, totals);
    add(dev, KV_FLUSH, now.flush, before.flush, totals);
    disk.last = now;
  }
}

void GuestDisks::add(std::uint16_t dev, std::uint16_t op, const virt::GuestOperations& now,
                     const virt::GuestOperations& before, tenancy::EpochTotals& totals) const {
  const core::SeriesId count{KV_GUEST_DISK, dev, op};
  const core::SeriesId time{KV_GUEST_DISK_TIME, dev, op};
  core::CounterValue total = totals.total(count, {});
  total += {.count = now.operations - before.operations, .sum = now.bytes - before.bytes};
  totals.set(count, total);
  total = totals.total(time, {});
  total += {.count = now.time_ns - std::min(now.time_ns, before.time_ns), .sum = 0};
  totals.set(time, total);
}

std::vector<DeviceLabel> GuestDisks::labels() const {
  std::vector<DeviceLabel> labels;
  for (std::size_t dev = 0; dev < disks_.size(); ++dev) {
    labels.push_back({.space = bpf::DevSpace::guest_disk,
                      .name = disks_[dev].target,
                      .mac = {},
                      .devs = {static_cast<std::uint16_t>(dev)},
                      .of_domain = true});
  }
  return labels;
}

std::uint64_t GuestDisks::unobserved_ns(std::uint64_t epoch_start_unix_ns,
                                        std::uint64_t until_unix_ns) const {
  const auto since = [](std::uint64_t later, std::uint64_t earlier) {
    return later - std::min(earlier, later);
  };
  if (until_unix_ns_ == 0) return since(until_unix_ns, epoch_start_unix_ns);
  return since(since_unix_ns_, epoch_start_unix_ns) + since(until_unix_ns, until_unix_ns_);
}

void add_queue_depth(const bpf::SlotMaps& maps, std::span<const bpf::NicKey> nics, const core::VmFacts* facts,
                     tenancy::EpochTotals& totals) {
  const std::uint16_t rows = bpf::rows_of(maps.shape(), bpf::DevSpace::nic);
  const auto unplugged = [&](std::uint16_t row) {
    return facts != nullptr && row < nics.size() &&
           std::ranges::none_of(
               facts->nics,
               [&](const core::Nic& nic) { return bpf::nic_key(nic.netns, nic.ifindex) == nics[row]; });
  };
  for (std::uint16_t row = 0; row < rows; ++row) {
    const std::uint16_t dev = row + 1 == rows ? kOtherDevice : row;
    // What is taken was handed over before: read in this order there are never too few of the latter.
    const std::uint64_t taken =
        totals.total({KV_NIC_PACKETS, dev, KV_RECEIVE}, maps.counter({KV_NIC_PACKETS, row, KV_RECEIVE}))
            .count;
    const core::CounterValue queue =
        totals.total({KV_NIC_QUEUE, dev, 0}, maps.counter({KV_NIC_QUEUE, row, 0}));
    const std::uint64_t handed = queue.count - std::min(queue.count, queue.sum);
    if (taken == 0 && handed == 0) continue;
    const core::SeriesId id{KV_NIC_DEPTH, dev, 0};
    const std::uint64_t before = std::max(totals.total(id, {}).sum, taken - std::min(taken, handed));
    totals.set(id, {.count = unplugged(row) ? 0 : handed + before - taken, .sum = before});
  }
}

std::vector<DeviceLabel> label_vcpus(const core::VmFacts* facts, std::uint16_t rows) {
  std::vector<DeviceLabel> labels;
  const std::uint32_t known =
      facts != nullptr ? std::max(facts->vcpus, facts->max_vcpus) : rows - std::min<std::uint16_t>(rows, 1);
  for (std::uint32_t vcpu = 0; vcpu < known; ++vcpu) {
    labels.push_back({.space = bpf::DevSpace::vcpu,
                      .name = std::to_string(vcpu),
                      .mac = {},
                      .devs = {static_cast<std::uint16_t>(vcpu)},
                      .of_domain = facts != nullptr && vcpu < facts->vcpus});
  }
  labels.push_back(
      {.space = bpf::DevSpace::vcpu, .name = "other", .mac = {}, .devs = {kOtherDevice}, .of_domain = false});
  return labels;
}

DeviceLabel vm_label() {
  return {.space = bpf::DevSpace::vm, .name = {}, .mac = {}, .devs = {0}, .of_domain = true};
}

std::uint64_t throttled_ns(const virt::CpuThrottle& now, const std::optional<virt::CpuThrottle>& before,
                           std::size_t vcpu, std::uint64_t waited_ns, std::uint64_t all_waited_ns) {
  const auto since = [](std::uint64_t value, std::uint64_t start) { return value - std::min(value, start); };
  const auto own = [vcpu](const virt::CpuThrottle& throttle) {
    return vcpu < throttle.vcpu_ns.size() ? throttle.vcpu_ns[vcpu] : 0;
  };
  const std::uint64_t own_ns = since(own(now), before ? own(*before) : 0);
  const std::uint64_t vm_ns = since(now.vm_ns, before ? before->vm_ns : 0);
  if (all_waited_ns == 0) return own_ns;
  const double share = static_cast<double>(waited_ns) / static_cast<double>(all_waited_ns);
  return own_ns + static_cast<std::uint64_t>(static_cast<double>(vm_ns) * share);
}

core::CounterValue steal_of(std::uint64_t waited_ns, std::uint64_t throttled_ns,
                            const core::CounterValue& shown) {
  const std::uint64_t throttled = std::max(shown.sum, throttled_ns);
  return {.count = std::max(shown.count, waited_ns - std::min(waited_ns, throttled)), .sum = throttled};
}

void add_steal(const bpf::SlotMaps& maps, const virt::CpuThrottle& throttle,
               const std::optional<virt::CpuThrottle>& before, tenancy::EpochTotals& totals) {
  const std::uint16_t rows = bpf::rows_of(maps.shape(), bpf::DevSpace::vcpu);
  const auto dev_of = [rows](std::uint16_t row) { return row + 1 == rows ? kOtherDevice : row; };
  const auto vcpu_waited_ns = [&](std::uint16_t row) {
    return totals.total({KV_VCPU_TIME, dev_of(row), 0}, maps.counter({KV_VCPU_TIME, row, 0})).sum;
  };
  std::uint64_t all_ns = 0;
  for (std::uint16_t row = 0; row < rows; ++row) all_ns += vcpu_waited_ns(row);
  for (std::uint16_t sub = 0; sub < KV_THREADS; ++sub) {
    const core::SeriesId id{KV_THREAD_TIME, 0, sub};
    all_ns += totals.total(id, maps.counter(id)).sum;
  }
  for (std::uint16_t row = 0; row < rows; ++row) {
    const std::uint64_t waited_ns = vcpu_waited_ns(row);
    if (waited_ns == 0) continue;
    const core::SeriesId id{KV_VCPU_STEAL, dev_of(row), 0};
    totals.set(id, steal_of(waited_ns, throttled_ns(throttle, before, row, waited_ns, all_ns),
                            totals.total(id, {})));
  }
}

void fold_incarnation(const bpf::SlotMaps& maps, tenancy::EpochTotals& totals) {
  core::HistogramValue histogram;
  for (const bpf::Kind& kind : bpf::catalogue()) {
    const std::uint16_t rows = bpf::rows_of(maps.shape(), kind.dev_space);
    for (std::uint16_t row = 0; row < rows; ++row) {
      const bool other = row + 1 == rows && kind.dev_space != bpf::DevSpace::vm;
      const std::uint16_t dev = other ? kOtherDevice : row;
      for (std::uint16_t sub = 0; sub < kind.subs.size(); ++sub) {
        const core::SeriesId in_map{kind.id, row, sub};
        const core::SeriesId in_ledger{kind.id, dev, sub};
        if (kind.histogram) {
          if (maps.histogram_empty(in_map)) continue;
          maps.histogram(in_map, histogram);
          totals.fold(in_ledger, histogram);
        } else if (const core::CounterValue value = maps.counter(in_map); value != core::CounterValue{}) {
          totals.fold(in_ledger, value);
        }
      }
    }
  }
}

core::HistogramValue* VmReading::next_histogram() {
  if (used_histograms_ == histograms_.size()) histograms_.emplace_back();
  core::HistogramValue* next = &histograms_[used_histograms_++];
  *next = {};
  return next;
}

void VmReading::read(const bpf::SlotMaps* maps, const tenancy::EpochTotals& totals,
                     std::span<const DeviceLabel> devices) {
  rows_.clear();
  first_of_kind_.clear();
  used_histograms_ = 0;
  core::HistogramValue live;
  for (const bpf::Kind& kind : bpf::catalogue()) {
    const std::uint16_t rows =
        maps != nullptr ? bpf::rows_of(maps->shape(), kind.dev_space) : std::uint16_t{0};
    first_of_kind_.push_back(rows_.size());
    for (const DeviceLabel& device : devices) {
      if (device.space != kind.dev_space) continue;
      // Counted together with the others', in the last row: its own would say that nothing happened.
      const bool beyond =
          rows > 0 && !device.devs.empty() && std::ranges::none_of(device.devs, [&](std::uint16_t dev) {
            return row_of(kind.dev_space, dev, rows).has_value();
          });
      for (std::uint16_t sub = 0; sub < kind.subs.size(); ++sub) {
        Row row{.kind = &kind, .sub = sub, .device = &device, .counter = {}, .histogram = nullptr};
        core::HistogramValue* histogram = nullptr;
        for (const std::uint16_t dev : device.devs) {
          const core::SeriesId in_ledger{kind.id, dev, sub};
          const std::optional<std::uint16_t> at = rows > 0 ? row_of(kind.dev_space, dev, rows) : std::nullopt;
          if (!kind.histogram) {
            const core::CounterValue now = at ? maps->counter({kind.id, *at, sub}) : core::CounterValue{};
            row.counter += totals.total(in_ledger, now);
            continue;
          }
          const bool counted = at && !maps->histogram_empty({kind.id, *at, sub});
          if (!counted && !totals.histograms().contains(in_ledger)) continue;
          if (histogram == nullptr) histogram = next_histogram();
          live = {};
          if (counted) maps->histogram({kind.id, *at, sub}, live);
          totals.add_closed(in_ledger, live);
          *histogram += live;
        }
        const bool always = kind.subs[sub].always && device.of_domain && !beyond;
        if (kind.histogram) {
          if (histogram == nullptr && always) histogram = next_histogram();
          row.histogram = histogram;
          if (histogram != nullptr) rows_.push_back(row);
        } else if (always || row.counter != core::CounterValue{}) {
          rows_.push_back(row);
        }
      }
    }
  }
  first_of_kind_.push_back(rows_.size());
}

void VmReading::append(const core::Instrument* instrument, const Row& row, bool sum, bool ended,
                       std::uint64_t start_unix_ns, std::uint64_t time_unix_ns,
                       std::vector<core::Point>& out) const {
  core::Point& point = out.emplace_back();
  point.instrument = instrument;
  point.start_unix_ns = start_unix_ns;
  point.time_unix_ns = time_unix_ns;
  point.no_recorded_value = ended;
  point.labels.reserve(4);
  if (row.kind->dev_space == bpf::DevSpace::disk || row.kind->dev_space == bpf::DevSpace::guest_disk)
    point.labels.push_back({"disk.device", row.device->name});
  if (row.kind->dev_space == bpf::DevSpace::vcpu) point.labels.push_back({"vcpu", row.device->name});
  if (row.kind->dev_space == bpf::DevSpace::nic) {
    point.labels.push_back({"network.interface.name", row.device->name});
    if (!row.device->mac.empty()) point.labels.push_back({"network.interface.mac", row.device->mac});
  }
  for (const bpf::SubLabel& label : row.kind->subs[row.sub].labels)
    point.labels.push_back({label.key, label.value});
  if (row.histogram != nullptr) {
    point.value = row.histogram;
    return;
  }
  const std::uint64_t value = sum ? row.counter.sum : row.counter.count;
  if (instrument->unit == "s") {
    point.value = static_cast<double>(value) / 1e9;
  } else {
    point.value = static_cast<std::int64_t>(value);
  }
}

void VmReading::walk(bool ended, std::uint64_t start_unix_ns, std::uint64_t time_unix_ns,
                     std::vector<core::Point>& out) const {
  for (const core::Instrument* instrument : instruments()) {
    for (const bpf::Kind& kind : bpf::catalogue()) {
      if (kind.count != instrument && kind.sum != instrument) continue;
      for (std::size_t row = first_of_kind_[kind.id]; row < first_of_kind_[kind.id + 1U]; ++row) {
        append(instrument, rows_[row], instrument == kind.sum, ended, start_unix_ns, time_unix_ns, out);
      }
    }
  }
}

void VmReading::points(std::uint64_t start_unix_ns, std::uint64_t time_unix_ns,
                       std::vector<core::Point>& out) const {
  walk(false, start_unix_ns, time_unix_ns, out);
}

void VmReading::end_points(std::uint64_t start_unix_ns, std::uint64_t time_unix_ns,
                           std::vector<core::Point>& out) const {
  walk(true, start_unix_ns, time_unix_ns, out);
}

}  // namespace kvmscope::hostd
