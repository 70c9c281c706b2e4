// SPDX-License-Identifier: Apache-2.0
#include "hostd/top_tracker.h"

#include <cmath>

#include "hostd/percentile.h"

namespace kvmscope::hostd {
namespace {

std::string label_of(const VmReading::Row& row, std::string_view key) {
  for (const bpf::SubLabel& label : row.kind->subs[row.sub].labels) {
    if (label.key == key) return std::string(label.value);
  }
  return {};
}

/// Whose row it is, of a disk, a thread or a NIC.
template <typename Row>
Row row_of(const tenancy::Epoch& epoch, double seconds) {
  Row row;
  row.vm = epoch.facts ? epoch.facts->name : epoch.comm;
  row.uuid = epoch.facts ? epoch.facts->uuid.value : std::string();
  row.tenant = epoch.tenant.value;
  if (epoch.facts && epoch.facts->nova) row.tenant_name = epoch.facts->nova->project_name;
  row.interval_s = seconds;
  return row;
}

core::HistogramValue difference(const core::HistogramValue& now, const core::HistogramValue& before) {
  core::HistogramValue delta;
  delta.sum_ns = now.sum_ns - before.sum_ns;
  delta.zero = now.zero - before.zero;
  for (std::size_t i = 0; i < core::kHistogramBuckets; ++i)
    delta.buckets[i] = now.buckets[i] - before.buckets[i];
  return delta;
}

}  // namespace

std::map<TopTracker::Key, TopTracker::Totals> TopTracker::totals_of(std::span<const VmReading::Row> rows) {
  std::map<Key, Totals> all;
  for (const VmReading::Row& row : rows) {
    if (row.kind->dev_space != bpf::DevSpace::disk) continue;
    Totals& totals = all[{row.device->name, label_of(row, "disk.io.direction")}];
    const std::string_view name = row.kind->count->name;
    if (name == "kvmscope.vm.disk.storage.operations") totals.io += row.counter;
    if (name == "kvmscope.vm.disk.storage.errors") totals.errors += row.counter.count;
    if (row.histogram == nullptr) continue;
    if (name == "kvmscope.vm.disk.storage.duration") totals.duration += *row.histogram;
    if (name == "kvmscope.vm.disk.storage.queue.duration") totals.queue += *row.histogram;
  }
  return all;
}

std::map<std::string, TopTracker::CpuTotals> TopTracker::cpus_of(std::span<const VmReading::Row> rows) {
  std::map<std::string, CpuTotals> all;
  for (const VmReading::Row& row : rows) {
    const bool vcpu = row.kind->dev_space == bpf::DevSpace::vcpu;
    const std::string thread = vcpu ? "vcpu " + row.device->name : label_of(row, "cpu.thread");
    if (thread.empty()) continue;
    const std::string_view count = row.kind->count != nullptr ? row.kind->count->name : "";
    const std::string_view sum = row.kind->sum != nullptr ? row.kind->sum->name : "";
    if (count == "kvmscope.vm.cpu.time") all[thread].run_ns += row.counter.count;
    if (count == "kvmscope.vm.cpu.steal.time") all[thread].steal_ns += row.counter.count;
    if (sum == "kvmscope.vm.cpu.steal.time") all[thread].steal_ns += row.counter.sum;
    if (sum == "kvmscope.vm.cpu.throttled.time") all[thread].throttled_ns += row.counter.sum;
    if (count == "kvmscope.vm.cpu.exits")
      all[thread].exits = all[thread].exits.value_or(0) + row.counter.count;
    if (row.histogram != nullptr && count == "kvmscope.vm.cpu.delay.duration")
      all[thread].delay += *row.histogram;
  }
  return all;
}

std::map<std::string, TopTracker::NicTotals> TopTracker::nics_of(std::span<const VmReading::Row> rows) {
  std::map<std::string, NicTotals> all;
  for (const VmReading::Row& row : rows) {
    if (row.kind->dev_space != bpf::DevSpace::nic || row.kind->count == nullptr) continue;
    NicTotals& totals = all[row.device->name];
    const std::string_view name = row.kind->count->name;
    const bool received = label_of(row, "network.io.direction") == "receive";
    if (name == "kvmscope.vm.network.packet.count") (received ? totals.received : totals.sent) += row.counter;
    if (name == "kvmscope.vm.network.packet.dropped") totals.dropped += row.counter.count;
    if (name == "kvmscope.vm.network.queue.depth") totals.waiting += row.counter.count;
    if (row.histogram != nullptr && name == "kvmscope.vm.network.queue.duration")
      totals.wait += *row.histogram;
  }
  return all;
}

void TopTracker::observe(const tenancy::Epoch& epoch, std::span<const VmReading::Row> rows,
                         std::uint64_t monotonic_ns) {
  Reading now{
      .monotonic_ns = monotonic_ns, .totals = totals_of(rows), .cpus = cpus_of(rows), .nics = nics_of(rows)};
  const auto before = before_.find(epoch.serial);
  if (before != before_.end() && before->second.monotonic_ns < monotonic_ns) {
    const double seconds = static_cast<double>(monotonic_ns - before->second.monotonic_ns) / 1e9;
    for (const auto& [key, totals] : now.totals) {
      const Totals last = before->second.totals.contains(key) ? before->second.totals.at(key) : Totals{};
      const core::HistogramValue duration = difference(totals.duration, last.duration);
      TopRow& row = next_.rows.emplace_back(row_of<TopRow>(epoch, seconds));
      row.disk = key.first;
      row.direction = key.second;
      row.operations_per_s = static_cast<double>(totals.io.count - last.io.count) / seconds;
      row.bytes_per_s = static_cast<double>(totals.io.sum - last.io.sum) / seconds;
      row.p50_ns = percentile_ns(duration, 0.50);
      row.p95_ns = percentile_ns(duration, 0.95);
      row.p99_ns = percentile_ns(duration, 0.99);
      row.queue_p99_ns = percentile_ns(difference(totals.queue, last.queue), 0.99);
      row.errors = totals.errors - last.errors;
    }
    for (const auto& [thread, totals] : now.cpus) {
      const auto old = before->second.cpus.find(thread);
      const CpuTotals last = old != before->second.cpus.end() ? old->second : CpuTotals{};
      CpuRow& row = next_.cpus.emplace_back(row_of<CpuRow>(epoch, seconds));
      row.thread = thread;
      row.cpu = static_cast<double>(totals.run_ns - last.run_ns) / 1e9 / seconds;
      row.steal = static_cast<double>(totals.steal_ns - last.steal_ns) / 1e9 / seconds;
      row.throttled = static_cast<double>(totals.throttled_ns - last.throttled_ns) / 1e9 / seconds;
      if (totals.exits) {
        const auto exits = static_cast<double>(*totals.exits - last.exits.value_or(0));
        row.exits_per_s = static_cast<std::uint64_t>(std::llround(exits / seconds));
      }
      row.delay_p99_ns = percentile_ns(difference(totals.delay, last.delay), 0.99);
    }
    for (const auto& [nic, totals] : now.nics) {
      const auto old = before->second.nics.find(nic);
      const NicTotals last = old != before->second.nics.end() ? old->second : NicTotals{};
      NicRow& row = next_.nics.emplace_back(row_of<NicRow>(epoch, seconds));
      row.nic = nic;
      row.received_per_s = static_cast<double>(totals.received.count - last.received.count) / seconds;
      row.received_bytes_per_s = static_cast<double>(totals.received.sum - last.received.sum) / seconds;
      row.sent_per_s = static_cast<double>(totals.sent.count - last.sent.count) / seconds;
      row.sent_bytes_per_s = static_cast<double>(totals.sent.sum - last.sent.sum) / seconds;
      row.dropped = totals.dropped - last.dropped;
      row.waiting = totals.waiting;
      row.wait_p99_ns = percentile_ns(difference(totals.wait, last.wait), 0.99);
    }
  }
  before_[epoch.serial] = std::move(now);
}

}  // namespace kvmscope::hostd
