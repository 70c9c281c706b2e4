// SPDX-License-Identifier: Apache-2.0
#include "hostd/vm_views.h"

#include <algorithm>
#include <string>
#include <string_view>

namespace kvmscope::hostd {
namespace {

std::string_view state_name(tenancy::EpochState state) {
  using enum tenancy::EpochState;
  switch (state) {
    case unnamed:
      return "unnamed";
    case attributed:
      return "attributed";
    case unattributed:
      return "unattributed";
    case over_quota:
      return "over_quota";
    case draining:
      return "draining";
    case closed:
      return "closed";
  }
  return "";
}

std::string_view backing_name(core::DiskBacking backing) {
  switch (backing) {
    case core::DiskBacking::block_device:
      return "block_device";
    case core::DiskBacking::file:
      return "file";
    case core::DiskBacking::invisible:
      return "invisible";
  }
  return "";
}

/// The device's own number in the slot; empty if the kernel does not count it by itself.
std::string dev_of(bpf::DevSpace space, const std::string& name, const EpochData* data) {
  if (data == nullptr) return {};
  for (const DeviceLabel& label : data->devices) {
    if (label.space == space && label.name == name && !label.devs.empty())
      return std::to_string(label.devs.front());
  }
  return {};
}

VmView view_of(const tenancy::Epoch& epoch, const EpochData* data) {
  VmView view;
  view.name = epoch.comm;
  view.tenant = epoch.tenant.value;
  view.tenancy_source = epoch.tenancy_source;
  view.state = state_name(epoch.state);
  view.pid = epoch.process.tgid;
  view.slot = epoch.slot.slot.value;
  view.generation = epoch.slot.generation.value;
  view.started_unix_ns = epoch.start_unix_ns;
  view.epoch_id = epoch.id.value;
  view.coverage_reason = untraced_reason(epoch);
  if (!epoch.facts) return view;
  view.uuid = epoch.facts->uuid.value;
  view.name = epoch.facts->name;
  view.domain_id = epoch.facts->domain_id;
  if (epoch.facts->nova) view.tenant_name = epoch.facts->nova->project_name;
  for (const core::Disk& disk : epoch.facts->disks) {
    view.disks.push_back({.target = disk.target,
                          .source = disk.source,
                          .dev = dev_of(bpf::DevSpace::disk, disk.target, data),
                          .backing = std::string(backing_name(disk.backing)),
                          .reason = disk.invisible_reason});
  }
  for (const core::Nic& nic : epoch.facts->nics) {
    view.nics.push_back({.name = nic.alias,
                         .mac = nic.mac,
                         .tap = nic.tap,
                         .dev = dev_of(bpf::DevSpace::nic, nic.alias, data),
                         .reason = nic.invisible_reason});
  }
  return view;
}

void add_stream(const StreamSet::Entry& entry, TenantView& view) {
  const exporters::StreamStats stats = entry.stats();
  view.exporter = "none";
  if (entry.stream) {
    const exporters::StreamConfig& config = entry.stream->config();
    const bool file = config.kind == exporters::StreamConfig::Kind::file;
    view.exporter = file ? "file" : "otlp_grpc";
    view.destination = file ? config.path : config.endpoint;
  }
  view.healthy = stats.healthy;
  view.waiting_for_credentials = stats.waiting_for_credentials;
  view.last_error = stats.last_error;
  view.sent_items = stats.sent_items;
  view.sent_requests = stats.sent_requests;
  view.failed_requests = stats.failed_requests;
  view.retried_requests = stats.retried_requests;
  view.dropped_items = stats.dropped_items_queue + stats.dropped_items_permanent;
  view.rejected_items = stats.rejected_items;
  view.auth_failures = stats.auth_failures;
  view.queued_batches = stats.queued_batches;
  view.queued_bytes = stats.queued_bytes;
  view.oldest_queued_ns = stats.oldest_queued_ns;
}

}  // namespace

std::vector<VmView> vm_views(const tenancy::Registry& registry, SlotKeeper& keeper,
                             const Coverage& coverage) {
  std::vector<VmView> views;
  for (const tenancy::Epoch* epoch : registry.epochs()) {
    if (epoch->state == tenancy::EpochState::closed) continue;
    views.push_back(view_of(*epoch, keeper.data(*epoch)));
  }
  for (const auto& [uuid, problem] : coverage.problems()) {
    VmView& view = views.emplace_back();
    view.uuid = uuid.value;
    view.name = problem.name;
    view.state = "untraced";
    view.coverage_reason = problem.reason;
  }
  return views;
}

std::vector<TenantView> tenant_views(const tenancy::Registry& registry, const StreamSet& streams,
                                     const bpf::Tracer& tracer) {
  std::map<core::TenantId, TenantView> views;
  for (const auto& [tenant, entry] : streams.entries()) add_stream(entry, views[tenant]);
  for (const auto& [index, tenant] : registry.tenants()) {
    TenantView& view = views[tenant];
    view.index = index;
    view.ring_drops = tracer.ring_drops(index);
  }
  for (const tenancy::Epoch* epoch : registry.epochs()) {
    if (epoch->tenant.value.empty() || epoch->state == tenancy::EpochState::closed) continue;
    TenantView& view = views[epoch->tenant];
    ++view.vms;
    if (epoch->facts && epoch->facts->nova) view.name = epoch->facts->nova->project_name;
  }
  std::vector<TenantView> sorted;
  for (auto& [tenant, view] : views) {  // kOperator begins with a control character: it sorts first
    view.id = tenant == kOperator ? "(operator)" : tenant.value;
    if (tenant == kOperator) view.ring_drops = tracer.ring_drops(0);
    if (view.exporter.empty()) view.exporter = "none";
    sorted.push_back(std::move(view));
  }
  return sorted;
}

std::vector<CheckLine> check_lines(const std::vector<CheckLine>& host, const virt::ConnectionState& libvirt,
                                   const bpf::Tracer& tracer) {
  std::vector<CheckLine> lines = host;
  lines.push_back(
      {.name = "libvirt connection",
       .ok = libvirt.connected,
       .detail = libvirt.detail,
       .effect = libvirt.connected ? "" : "new VMs are counted but have no name until it is back"});
  for (const bpf::ProgramInfo& program : tracer.programs()) {
    lines.push_back({.name = "program " + program.name,
                     .ok = program.attached || !program.why_not.empty(),
                     .detail = program.attached ? "attached" : program.why_not,
                     .effect = {}});
  }
  return lines;
}

}  // namespace kvmscope::hostd
