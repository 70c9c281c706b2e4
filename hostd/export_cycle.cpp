// SPDX-License-Identifier: Apache-2.0
#include "hostd/export_cycle.h"

#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <ctime>
#include <utility>

namespace kvmscope::hostd {
namespace {

/// Ended epochs kept for streams that do not take them; about a KiB each without histograms, some ten with.
constexpr std::size_t kMaxClosed = 20'000;
/// Event records of one VM in one interval; what a failing disk sends beyond is counted, not kept.
constexpr std::size_t kMaxLogs = 200;
/// A receiver that says so often that it will never take an ended epoch's last values is believed.
constexpr unsigned kMaxRefusals = 3;

std::uint64_t thread_cpu_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

const bpf::Kind* disk_errors() {
  for (const bpf::Kind& kind : bpf::catalogue()) {
    if (kind.count != nullptr && kind.count->name == "kvmscope.vm.disk.storage.errors") return &kind;
  }
  return nullptr;
}

std::string device_name(const EpochData& data, std::uint16_t dev) {
  for (const DeviceLabel& label : data.devices) {
    if (label.space != bpf::DevSpace::disk) continue;
    if (std::ranges::find(label.devs, dev) != label.devs.end()) return label.name;
  }
  return "other";
}

core::LogRecord io_error_record(const bpf::IoErrorEvent& event, std::uint64_t unix_ns,
                                const std::string& device, bool operators) {
  core::LogRecord record{.event_name = "kvmscope.vm.disk.error",
                         .severity = core::Severity::error,
                         .time_unix_ns = unix_ns,
                         .body = "a request failed in the host's storage",
                         .attributes = {{"disk.device", device}}};
  if (const bpf::Kind* kind = disk_errors(); kind != nullptr && event.sub < kind->subs.size()) {
    for (const bpf::SubLabel& label : kind->subs[event.sub].labels) {
      record.attributes.push_back({label.key, std::string(label.value)});
    }
  }
  record.attributes.push_back({"kvmscope.size", std::int64_t{event.bytes}});
  if (operators)
    record.attributes.push_back({"kvmscope.host.sector", static_cast<std::int64_t>(event.sector)});
  return record;
}

}  // namespace

ExportCycle::ExportCycle(const Config& config, std::string boot_id, tenancy::Registry& registry,
                         SlotKeeper& keeper, StreamSet& streams, TopTracker& top, const core::Clock& clock)
    : config_(config),
      boot_id_(std::move(boot_id)),
      registry_(registry),
      keeper_(keeper),
      streams_(streams),
      top_(top),
      clock_(clock),
      start_unix_ns_(clock.unix_ns()) {}

core::Resource ExportCycle::vm_resource(const tenancy::Epoch& epoch, bool operators) const {
  core::Resource resource;
  auto& out = resource.attributes;
  const core::VmFacts* facts = epoch.facts ? &*epoch.facts : nullptr;
  const core::NovaMetadata* nova = facts != nullptr && facts->nova ? &*facts->nova : nullptr;
  if (nova != nullptr) {
    out.push_back({"cloud.provider", "openstack"});
    out.push_back({"cloud.platform", "openstack_nova"});
  }
  if (!epoch.tenant.value.empty()) out.push_back({"cloud.account.id", epoch.tenant.value});
  if (!config_.host.region.empty()) out.push_back({"cloud.region", config_.host.region});
  if (!config_.host.availability_zone.empty()) {
    out.push_back({"cloud.availability_zone", config_.host.availability_zone});
  }
  if (facts != nullptr) {
    std::string name = facts->name;
    if (facts->own && !facts->own->name.empty()) name = facts->own->name;
    if (nova != nullptr && !nova->instance_name.empty()) name = nova->instance_name;
    out.push_back({"vm.id", facts->uuid.value});
    out.push_back({"vm.name", std::move(name)});
  }
  out.push_back({"service.namespace", "kvmscope"});
  out.push_back({"service.name", "kvmscope.vm"});
  out.push_back({"service.instance.id", epoch.id.value});
  const bool show_host = operators || config_.show_host(epoch.tenant);
  if (show_host) out.push_back({"host.id", config_.host.id});
  if (!operators) return resource;
  out.push_back({"kvmscope.attributed", !epoch.tenant.value.empty()});
  out.push_back({"process.pid", static_cast<std::int64_t>(epoch.process.tgid)});
  if (!epoch.tenancy_source.empty()) out.push_back({"kvmscope.tenancy.source", epoch.tenancy_source});
  if (facts != nullptr) out.push_back({"kvmscope.domain.name", facts->name});
  if (nova != nullptr) {
    out.push_back({"kvmscope.project.name", nova->project_name});
    out.push_back({"kvmscope.flavor.name", nova->flavor});
  }
  return resource;
}

core::Resource ExportCycle::daemon_resource(const core::TenantId& tenant) const {
  core::Resource resource;
  auto& out = resource.attributes;
  const bool operators = tenant == kOperator;
  out.push_back({"service.namespace", "kvmscope"});
  out.push_back({"service.name", "kvmscope.hostd"});
  // Opaque to a tenant, yet another for each host: heartbeats of two hosts must not run into each other.
  const std::string instance =
      operators ? config_.host.id : tenancy::epoch_id(boot_id_, {config_.host.id}, {}, tenant).value;
  out.push_back({"service.instance.id", instance});
  if (!operators) out.push_back({"cloud.account.id", tenant.value});
  if (!config_.host.region.empty()) out.push_back({"cloud.region", config_.host.region});
  if (operators || config_.show_host(tenant)) out.push_back({"host.id", config_.host.id});
  return resource;
}

ExportCycle::Outgoing& ExportCycle::tenant_outgoing(const core::TenantId& tenant, Interval& interval) {
  return interval.tenants.try_emplace(tenant, tenant).first->second;
}

void ExportCycle::add_to(Outgoing& outgoing, const core::Resource& resource,
                         const exporters::EncodedScope& scope, exporters::Values values) {
  outgoing.batch.add(resource, scope, points_.size(), values);
}

void ExportCycle::add_epoch(const tenancy::Epoch& epoch, Interval& interval) {
  // Without an id nobody has been named its reader yet: what it counts is kept for whoever it turns out to
  // be.
  if (epoch.id.value.empty()) return;
  Closed* closed = nullptr;
  if (epoch.state == tenancy::EpochState::closed) {
    closed = &closed_state(epoch, interval.unix_ns);
    if (!closed->due() && !closed->ended()) return;  // on its way on one stream, and taken by the other
  }
  const EpochData* data = keeper_.data(epoch);
  if (data == nullptr) {
    if (closed != nullptr) interval.finished.push_back(epoch.serial);
    return;
  }
  if (!epoch.tenant.value.empty()) end_former(epoch, *data, interval);
  reading_.read(data->live ? &*data->live : nullptr, data->totals, data->devices);
  if (closed != nullptr) return add_closed(epoch, *closed, interval);

  top_.observe(epoch, reading_.rows(), interval.monotonic_ns);
  points_.clear();
  reading_.points(epoch.start_unix_ns, std::max(interval.unix_ns, epoch.start_unix_ns), points_);
  const bool has_tenant = !epoch.tenant.value.empty();
  if (has_tenant) ++tenant_outgoing(epoch.tenant, interval).vms;
  if (points_.empty()) return;
  const exporters::EncodedScope scope = exporters::encode_metrics(points_);
  if (has_tenant) add_to(tenant_outgoing(epoch.tenant, interval), vm_resource(epoch, false), scope);
  const core::Resource resource = vm_resource(epoch, true);
  add_to(interval.operators, resource, scope);
  if (!has_tenant) unattributed_[epoch.serial] = {resource, data->devices};
}

/// An unattributed VM was adopted: all it counted is in its owner's series, so the operator's old ones end,
/// called what they were called.
void ExportCycle::end_former(const tenancy::Epoch& epoch, const EpochData& data, Interval& interval) {
  const auto former = unattributed_.extract(epoch.serial);
  if (former.empty() || !streams_.wanted(kOperator)) return;
  reading_.read(data.live ? &*data.live : nullptr, data.totals, former.mapped().devices);
  points_.clear();
  reading_.end_points(epoch.start_unix_ns, std::max(interval.unix_ns, epoch.start_unix_ns), points_);
  if (points_.empty()) return;
  add_to(interval.operators, former.mapped().resource, exporters::encode_metrics(points_),
         exporters::Values::last);
}

ExportCycle::Closed& ExportCycle::closed_state(const tenancy::Epoch& epoch, std::uint64_t unix_ns) {
  const auto [found, first] = closed_.try_emplace(epoch.serial);
  Closed& closed = found->second;
  if (!first) return closed;
  top_.forget(epoch);
  closed.final_unix_ns = std::max({unix_ns, epoch.end_unix_ns, epoch.start_unix_ns});
  if (epoch.tenant.value.empty() || !streams_.wanted(epoch.tenant)) closed.tenant = Delivery::done;
  if (!streams_.wanted(kOperator)) closed.operators = Delivery::done;
  return closed;
}

void ExportCycle::add_closed(const tenancy::Epoch& epoch, Closed& closed, Interval& interval) {
  const bool ended = closed.ended();
  points_.clear();
  if (ended) {
    reading_.end_points(epoch.start_unix_ns, std::max(interval.unix_ns, closed.final_unix_ns), points_);
  } else {
    reading_.points(epoch.start_unix_ns, closed.final_unix_ns, points_);
  }
  if (points_.empty() || ended) interval.finished.push_back(epoch.serial);
  if (points_.empty()) return;

  const exporters::EncodedScope scope = exporters::encode_metrics(points_);
  for (const bool operators : {false, true}) {
    const core::TenantId& reader = operators ? kOperator : epoch.tenant;
    const Delivery delivery = operators ? closed.operators : closed.tenant;
    if (reader.value.empty() || !streams_.wanted(reader)) continue;
    if (!ended && delivery != Delivery::due) continue;
    Outgoing& outgoing = closed.refusals > 0 ? interval.refused.try_emplace(reader, reader).first->second
                         : operators         ? interval.operators
                                             : tenant_outgoing(reader, interval);
    add_to(outgoing, vm_resource(epoch, operators), scope, exporters::Values::last);
    if (!ended) outgoing.finals.push_back(epoch.serial);
  }
}

void ExportCycle::delivered(const std::vector<std::uint64_t>& finals, bool operators,
                            exporters::Stream::Outcome outcome) {
  using Outcome = exporters::Stream::Outcome;
  for (const std::uint64_t serial : finals) {
    const auto found = closed_.find(serial);
    if (found == closed_.end()) continue;
    Closed& closed = found->second;
    const bool given_up = outcome == Outcome::refused && ++closed.refusals >= kMaxRefusals;
    if (given_up) ++closed_lost_;
    (operators ? closed.operators : closed.tenant) =
        outcome == Outcome::acknowledged || given_up ? Delivery::done : Delivery::due;
  }
}

void ExportCycle::submit(Outgoing outgoing) {
  if (outgoing.batch.empty()) return;
  exporters::Stream* stream = streams_.get(outgoing.batch.tenant());
  if (stream == nullptr) return;  // ended epochs stay due and are offered again
  const bool operators = outgoing.batch.tenant() == kOperator;
  for (const std::uint64_t serial : outgoing.finals) {
    Closed& closed = closed_.at(serial);
    (operators ? closed.operators : closed.tenant) = Delivery::queued;
  }
  stream->submit(std::move(outgoing.batch),
                 [this, operators, finals = std::move(outgoing.finals)](exporters::Stream::Outcome outcome) {
                   delivered(finals, operators, outcome);
                 });
}

std::uint64_t ExportCycle::unix_time(std::uint64_t monotonic_ns) const {
  const std::uint64_t now_ns = clock_.monotonic_ns();
  return clock_.unix_ns() - (now_ns - std::min(monotonic_ns, now_ns));
}

void ExportCycle::on_io_error(core::SlotIdentity identity, const bpf::IoErrorEvent& event) {
  PendingLogs& pending = logs_[identity.generation];
  if (pending.io_errors.size() < kMaxLogs) {
    pending.io_errors.push_back({event, unix_time(event.monotonic_ns)});
  } else {
    ++pending.lost;
  }
}

void ExportCycle::on_process_start(const bpf::ProcessEvent& event) {
  // A probe of libvirt's, or a QEMU in a container, is no VM.
  if (registry_.by_slot(event.identity) == nullptr) return;
  logs_[event.identity.generation].life.push_back({.event_name = "kvmscope.vm.started",
                                                   .severity = core::Severity::info,
                                                   .time_unix_ns = unix_time(event.monotonic_ns),
                                                   .body = "QEMU started"});
}

void ExportCycle::on_process_end(const bpf::ProcessEvent& event) {
  const tenancy::Epoch* epoch = registry_.by_slot(event.identity);
  if (epoch == nullptr) return;
  const int status = event.wait_status;
  const bool killed = WIFSIGNALED(status);
  const bool well = !killed && WEXITSTATUS(status) == 0;
  core::LogRecord record{.event_name = "kvmscope.vm.ended",
                         .severity = well ? core::Severity::info : core::Severity::error,
                         .time_unix_ns = unix_time(event.monotonic_ns),
                         .body = well ? "QEMU ended" : "QEMU failed"};
  if (killed) {
    const char* name = ::sigabbrev_np(WTERMSIG(status));
    record.body = WCOREDUMP(status) ? "QEMU was killed and dumped core" : "QEMU was killed";
    record.attributes.push_back({"kvmscope.exit.signal", name != nullptr ? "SIG" + std::string(name)
                                                                         : std::to_string(WTERMSIG(status))});
  } else {
    record.attributes.push_back({"process.exit.code", std::int64_t{WEXITSTATUS(status)}});
  }
  if (epoch->facts) ++(killed ? ends_.killed : well ? ends_.well : ends_.failed);
  logs_[event.identity.generation].life.push_back(std::move(record));
}

void ExportCycle::on_qemu_event(core::ProcessKey process, const virt::QmpEvent& event) {
  const tenancy::Epoch* epoch = registry_.by_process(process);
  if (epoch == nullptr) return;
  auto made = qemu_event(event, epoch->start_unix_ns, clock_.unix_ns());
  if (!made) return;
  const core::Generation generation = keeper_.generation(*epoch);
  const core::TenantId& reader = epoch->tenant.value.empty() ? kOperator : epoch->tenant;
  // What was said while it was the former owner's is not for this one; beyond its quota a VM has no records.
  const bool earlier = !epoch->first_of_process && event.unix_ns.value_or(0) < epoch->start_unix_ns;
  if (earlier || generation.value == 0) {
    ++logs_lost_[reader];
    return;
  }
  PendingLogs& pending = logs_[generation];
  if (pending.qemu.size() < kMaxLogs) {
    pending.qemu.push_back(std::move(*made));
  } else {
    ++pending.lost;
  }
}

void ExportCycle::send_logs() {
  if (logs_.empty()) return;
  std::unordered_map<core::Generation, PendingLogs> pending = std::exchange(logs_, {});
  std::map<core::TenantId, exporters::Batch> batches;
  for (const tenancy::Epoch* epoch : registry_.epochs()) {
    auto found = pending.extract(keeper_.generation(*epoch));
    if (found.empty()) continue;
    if (epoch->id.value.empty()) {  // not named yet: kept for its owner
      logs_.insert(std::move(found));
      continue;
    }
    logs_lost_[epoch->tenant.value.empty() ? kOperator : epoch->tenant] += found.mapped().lost;
    const EpochData* data = keeper_.data(*epoch);
    for (const bool operators : {false, true}) {
      const core::TenantId& reader = operators ? kOperator : epoch->tenant;
      if (reader.value.empty() || data == nullptr) continue;
      std::vector<core::LogRecord> records = found.mapped().life;
      for (const IoError& error : found.mapped().io_errors) {
        records.push_back(
            io_error_record(error.event, error.unix_ns, device_name(*data, error.event.dev), operators));
      }
      for (const QemuEvent& event : found.mapped().qemu) {
        records.push_back(event.record);
        if (operators) std::ranges::copy(event.operators, std::back_inserter(records.back().attributes));
      }
      const auto batch = batches.try_emplace(reader, reader, exporters::Signal::logs).first;
      batch->second.add(vm_resource(*epoch, operators), exporters::encode_logs(records), records.size());
    }
  }
  // What is left belonged to no VM: a capability probe, a process that was discarded.
  for (auto& [tenant, batch] : batches) {
    exporters::Stream* stream = streams_.get(tenant);
    const std::size_t items = batch.items();
    if (stream == nullptr) {
      if (streams_.wanted(tenant)) logs_lost_[tenant] += items;
      continue;
    }
    stream->submit(std::move(batch), [this, items, reader = tenant](exporters::Stream::Outcome outcome) {
      if (outcome != exporters::Stream::Outcome::acknowledged) logs_lost_[reader] += items;
    });
  }
}

void ExportCycle::forget(std::uint64_t serial) {
  if (const tenancy::Epoch* epoch = registry_.by_serial(serial)) keeper_.forget(*epoch);
  unattributed_.erase(serial);
  closed_.erase(serial);
}

void ExportCycle::limit_closed() {
  while (closed_.size() > kMaxClosed) {
    const auto oldest = std::ranges::min_element(
        closed_, std::less<>{}, [](const auto& entry) { return entry.second.final_unix_ns; });
    forget(oldest->first);
    ++closed_lost_;
  }
}

void ExportCycle::run(const std::function<SelfReading()>& read_self) {
  const std::uint64_t cpu_before = thread_cpu_ns();
  ++cycles_;
  Interval interval;
  interval.unix_ns = clock_.unix_ns();
  interval.monotonic_ns = clock_.monotonic_ns();
  keeper_.bring_up_to_date();
  SelfReading self = read_self();  // after what that has counted
  top_.begin(interval.unix_ns);
  for (const tenancy::Epoch* epoch : registry_.epochs()) add_epoch(*epoch, interval);
  top_.end();

  for (auto& [tenant, outgoing] : interval.tenants) {
    if (!streams_.wanted(tenant)) continue;
    points_ = heartbeat_points(cycles_, outgoing.vms, start_unix_ns_, interval.unix_ns);
    add_to(outgoing, daemon_resource(tenant), exporters::encode_metrics(points_));
    submit(std::move(outgoing));
  }
  if (streams_.wanted(kOperator)) {
    self.cycles = cycles_;
    self.cycle_ns = last_cycle_ns_;
    self.closed_epochs_waiting = closed_.size();
    self.closed_epochs_lost = closed_lost_;
    self.ends = ends_;
    for (const auto& [tenant, records] : logs_lost_) {
      self.logs_lost.push_back({tenant == kOperator ? std::string() : tenant.value, records});
    }
    std::deque<std::string> strings;
    points_ = self_points(self, start_unix_ns_, interval.unix_ns, strings);
    add_to(interval.operators, daemon_resource(kOperator), exporters::encode_metrics(points_));
    submit(std::move(interval.operators));
  }
  for (auto& [tenant, outgoing] : interval.refused) submit(std::move(outgoing));
  send_logs();

  for (const std::uint64_t serial : interval.finished) forget(serial);
  limit_closed();
  last_cycle_ns_ = thread_cpu_ns() - cpu_before;
}

}  // namespace kvmscope::hostd
