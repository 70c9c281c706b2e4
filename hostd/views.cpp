// SPDX-License-Identifier: Apache-2.0
#include "hostd/views.h"

#include <nlohmann/json.hpp>
#include <string_view>
#include <type_traits>

namespace kvmscope::hostd {
namespace {

using nlohmann::json;

// One list of fields per view, visited both ways: a field cannot be written and not read. (V is the view,
// const or not.)

template <typename V, typename Visitor>
void visit_disk(V& disk, Visitor&& field) {
  field("target", disk.target);
  field("source", disk.source);
  field("dev", disk.dev);
  field("backing", disk.backing);
  field("reason", disk.reason);
}

template <typename V, typename Visitor>
void visit_nic(V& nic, Visitor&& field) {
  field("name", nic.name);
  field("mac", nic.mac);
  field("tap", nic.tap);
  field("dev", nic.dev);
  field("reason", nic.reason);
}

template <typename V, typename Visitor>
void visit_vm(V& vm, Visitor&& field) {
  field("uuid", vm.uuid);
  field("name", vm.name);
  field("domain_id", vm.domain_id);
  field("tenant", vm.tenant);
  field("tenant_name", vm.tenant_name);
  field("tenancy_source", vm.tenancy_source);
  field("state", vm.state);
  field("pid", vm.pid);
  field("slot", vm.slot);
  field("generation", vm.generation);
  field("started_unix_ns", vm.started_unix_ns);
  field("epoch_id", vm.epoch_id);
  field("disks", vm.disks);
  field("nics", vm.nics);
  field("coverage_reason", vm.coverage_reason);
}

template <typename V, typename Visitor>
void visit_tenant(V& tenant, Visitor&& field) {
  field("id", tenant.id);
  field("name", tenant.name);
  field("index", tenant.index);
  field("vms", tenant.vms);
  field("exporter", tenant.exporter);
  field("destination", tenant.destination);
  field("healthy", tenant.healthy);
  field("waiting_for_credentials", tenant.waiting_for_credentials);
  field("last_error", tenant.last_error);
  field("sent_items", tenant.sent_items);
  field("sent_requests", tenant.sent_requests);
  field("failed_requests", tenant.failed_requests);
  field("retried_requests", tenant.retried_requests);
  field("dropped_items", tenant.dropped_items);
  field("rejected_items", tenant.rejected_items);
  field("auth_failures", tenant.auth_failures);
  field("ring_drops", tenant.ring_drops);
  field("queued_batches", tenant.queued_batches);
  field("queued_bytes", tenant.queued_bytes);
  field("oldest_queued_ns", tenant.oldest_queued_ns);
}

template <typename V, typename Visitor>
void visit_row(V& row, Visitor&& field) {
  field("vm", row.vm);
  field("uuid", row.uuid);
  field("tenant", row.tenant);
  field("tenant_name", row.tenant_name);
  field("disk", row.disk);
  field("direction", row.direction);
  field("operations_per_s", row.operations_per_s);
  field("bytes_per_s", row.bytes_per_s);
  field("p50_ns", row.p50_ns);
  field("p95_ns", row.p95_ns);
  field("p99_ns", row.p99_ns);
  field("queue_p99_ns", row.queue_p99_ns);
  field("errors", row.errors);
  field("interval_s", row.interval_s);
}

template <typename V, typename Visitor>
void visit_cpu(V& row, Visitor&& field) {
  field("vm", row.vm);
  field("uuid", row.uuid);
  field("tenant", row.tenant);
  field("tenant_name", row.tenant_name);
  field("thread", row.thread);
  field("cpu", row.cpu);
  field("steal", row.steal);
  field("throttled", row.throttled);
  field("delay_p99_ns", row.delay_p99_ns);
  field("exits_per_s", row.exits_per_s);
  field("interval_s", row.interval_s);
}

template <typename V, typename Visitor>
void visit_nic_row(V& row, Visitor&& field) {
  field("vm", row.vm);
  field("uuid", row.uuid);
  field("tenant", row.tenant);
  field("tenant_name", row.tenant_name);
  field("nic", row.nic);
  field("received_per_s", row.received_per_s);
  field("received_bytes_per_s", row.received_bytes_per_s);
  field("sent_per_s", row.sent_per_s);
  field("sent_bytes_per_s", row.sent_bytes_per_s);
  field("dropped", row.dropped);
  field("waiting", row.waiting);
  field("wait_p99_ns", row.wait_p99_ns);
  field("interval_s", row.interval_s);
}

template <typename V, typename Visitor>
void visit_top(V& top, Visitor&& field) {
  field("time_unix_ns", top.time_unix_ns);
  field("rows", top.rows);
  field("cpus", top.cpus);
  field("nics", top.nics);
}

template <typename V, typename Visitor>
void visit_check(V& line, Visitor&& field) {
  field("name", line.name);
  field("ok", line.ok);
  field("detail", line.detail);
  field("effect", line.effect);
}

template <typename V, typename Visitor>
void visit(V& view, Visitor&& field) {
  using Plain = std::remove_const_t<V>;
  if constexpr (std::is_same_v<Plain, DiskView>) visit_disk(view, field);
  if constexpr (std::is_same_v<Plain, NicView>) visit_nic(view, field);
  if constexpr (std::is_same_v<Plain, VmView>) visit_vm(view, field);
  if constexpr (std::is_same_v<Plain, TenantView>) visit_tenant(view, field);
  if constexpr (std::is_same_v<Plain, TopRow>) visit_row(view, field);
  if constexpr (std::is_same_v<Plain, CpuRow>) visit_cpu(view, field);
  if constexpr (std::is_same_v<Plain, NicRow>) visit_nic_row(view, field);
  if constexpr (std::is_same_v<Plain, TopView>) visit_top(view, field);
  if constexpr (std::is_same_v<Plain, CheckLine>) visit_check(view, field);
}

template <typename T>
inline constexpr bool kIsOptional = false;
template <typename T>
inline constexpr bool kIsOptional<std::optional<T>> = true;
template <typename T>
inline constexpr bool kIsVector = false;
template <typename T>
inline constexpr bool kIsVector<std::vector<T>> = true;

template <typename T>
json written(const T& value) {
  if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
    return value;
  } else if constexpr (kIsOptional<T>) {
    return value ? json(*value) : json(nullptr);
  } else if constexpr (kIsVector<T>) {
    json list = json::array();
    for (const auto& item : value) list.push_back(written(item));
    return list;
  } else {
    json object = json::object();
    visit(value, [&](const char* name, const auto& field) { object[name] = written(field); });
    return object;
  }
}

/// Throws nlohmann's exceptions; checked() catches them.
template <typename T>
void read(const json& from, T& to) {
  if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
    to = from.get<T>();
  } else if constexpr (kIsOptional<T>) {
    to.reset();
    if (!from.is_null()) to = from.get<typename T::value_type>();
  } else if constexpr (kIsVector<T>) {
    for (const json& item : from.get_ref<const json::array_t&>()) read(item, to.emplace_back());
  } else {
    visit(to, [&](const char* name, auto& field) { read(from.at(name), field); });
  }
}

template <typename T>
core::Result<T> checked(const json& from) {
  try {
    T value;
    read(from, value);
    return value;
  } catch (const json::exception& error) {
    return core::fail(core::ErrorCode::corrupt, std::string("unexpected reply: ") + error.what());
  }
}

}  // namespace

json to_json(const std::vector<VmView>& vms) {
  return written(vms);
}
json to_json(const std::vector<TenantView>& tenants) {
  return written(tenants);
}
json to_json(const TopView& top) {
  return written(top);
}
json to_json(const std::vector<CheckLine>& lines) {
  return written(lines);
}

core::Result<std::vector<VmView>> vms_from_json(const json& from) {
  return checked<std::vector<VmView>>(from);
}
core::Result<std::vector<TenantView>> tenants_from_json(const json& from) {
  return checked<std::vector<TenantView>>(from);
}
core::Result<TopView> top_from_json(const json& from) {
  return checked<TopView>(from);
}
core::Result<std::vector<CheckLine>> check_from_json(const json& from) {
  return checked<std::vector<CheckLine>>(from);
}

std::string to_line(const json& json) {
  return json.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace kvmscope::hostd
