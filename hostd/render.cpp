// SPDX-License-Identifier: Apache-2.0
#include "hostd/render.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <tuple>
#include <utility>

#include "hostd/human.h"

namespace kvmscope::hostd {
namespace {

Cell text_cell(const std::string& text, Style style = Style::plain) {
  return {text.empty() ? "-" : safe_text(text), text.empty() ? Style::dim : style};
}

/// A person knows a project by its name.
const std::string& tenant_label(const std::string& id, const std::string& name) {
  return name.empty() ? id : name;
}

/// How many of the devices are traced.
std::string traced(const auto& devices) {
  const auto is_traced = [](const auto& device) { return !device.dev.empty(); };
  return fmt::format("{}/{}", std::ranges::count_if(devices, is_traced), devices.size());
}

/// The VM's own reason, or the first of its devices'.
std::string coverage(const VmView& vm) {
  if (!vm.coverage_reason.empty()) return vm.coverage_reason;
  for (const DiskView& disk : vm.disks)
    if (!disk.reason.empty()) return fmt::format("{}: {}", disk.target, disk.reason);
  for (const NicView& nic : vm.nics)
    if (!nic.reason.empty()) return fmt::format("{}: {}", nic.name, nic.reason);
  return {};
}

Style state_style(const std::string& state) {
  if (state == "attributed") return Style::green;
  return state == "unattributed" || state == "over_quota" ? Style::yellow : Style::plain;
}

struct StreamState {
  std::string text;
  Style style;
};
StreamState stream_state(const TenantView& tenant) {
  if (tenant.exporter == "none") return {"off", Style::dim};
  if (tenant.waiting_for_credentials) return {"waiting for credentials", Style::red};
  return tenant.healthy ? StreamState{"ok", Style::green} : StreamState{"failing", Style::red};
}

}  // namespace

std::string render_vms(std::vector<VmView> vms, std::uint64_t now_unix_ns, const Screen& screen) {
  if (vms.empty()) return "No VMs.\n";
  std::ranges::sort(vms, {}, [](const VmView& vm) { return std::tie(vm.name, vm.uuid, vm.started_unix_ns); });
  std::vector<std::vector<Cell>> rows;
  for (const VmView& vm : vms) {
    const std::uint64_t age = now_unix_ns > vm.started_unix_ns ? now_unix_ns - vm.started_unix_ns : 0;
    rows.push_back({text_cell(vm.name),
                    text_cell(vm.uuid),
                    text_cell(tenant_label(vm.tenant, vm.tenant_name)),
                    text_cell(vm.tenancy_source),
                    text_cell(vm.state, state_style(vm.state)),
                    {human_count(vm.pid)},
                    {human_count(vm.slot)},
                    {human_duration(age)},
                    {traced(vm.disks)},
                    {traced(vm.nics)},
                    text_cell(coverage(vm), Style::yellow)});
  }
  return render_table({{"VM", false, 12, 0},
                       {"UUID", false, 8, 4},
                       {"PROJECT", false, 8, 0},
                       {"BY", false, 0, 6},
                       {"STATE", false, 0, 0},
                       {"PID", true, 0, 3},
                       {"SLOT", true, 0, 5},
                       {"AGE", true, 0, 2},
                       {"DISKS", true, 0, 0},
                       {"NICS", true, 0, 0},
                       {"NOT TRACED BECAUSE", false, 18, 1}},
                      rows, screen);
}

std::string render_tenants(std::vector<TenantView> tenants, const Screen& screen) {
  if (tenants.empty()) return "No tenants.\n";
  std::ranges::sort(tenants, {}, &TenantView::index);
  std::vector<std::vector<Cell>> rows;
  for (const TenantView& tenant : tenants) {
    StreamState state = stream_state(tenant);
    const std::uint64_t lost = tenant.dropped_items + tenant.rejected_items;
    rows.push_back({text_cell(tenant_label(tenant.id, tenant.name)),
                    {human_count(tenant.vms)},
                    text_cell(tenant.exporter),
                    text_cell(tenant.destination),
                    {std::move(state.text), state.style},
                    {human_count(tenant.sent_items)},
                    {human_count(lost), lost == 0 ? Style::plain : Style::red},
                    {human_count(tenant.failed_requests)},
                    {tenant.queued_bytes == 0 ? "-" : human_bytes(static_cast<double>(tenant.queued_bytes))},
                    text_cell(tenant.last_error, Style::red)});
  }
  return render_table({{"TENANT", false, 8, 0},
                       {"VMS", true, 0, 0},
                       {"EXPORTER", false, 0, 5},
                       {"DESTINATION", false, 16, 3},
                       {"STREAM", false, 0, 0},
                       {"SENT", true, 0, 0},
                       {"LOST", true, 0, 0},
                       {"FAILED", true, 0, 4},
                       {"QUEUED", true, 0, 2},
                       {"LAST ERROR", false, 16, 1}},
                      rows, screen);
}

namespace {

std::string render_cpus(std::vector<CpuRow> cpus, std::size_t lines, const Screen& screen) {
  std::ranges::sort(cpus, [](const CpuRow& a, const CpuRow& b) {
    return std::tie(b.cpu, b.steal, a.vm, a.uuid, a.thread) <
           std::tie(a.cpu, a.steal, b.vm, b.uuid, b.thread);
  });
  const auto percent = [](double cpus_used) {
    return cpus_used < 0.0005 ? std::string("-") : fmt::format("{:.1f} %", cpus_used * 100);
  };
  constexpr double kMuchSteal = 0.1;
  std::vector<std::vector<Cell>> rows;
  for (const CpuRow& row : cpus) {
    if (lines != 0 && rows.size() == lines) break;
    rows.push_back({text_cell(row.vm),
                    text_cell(tenant_label(row.tenant, row.tenant_name)),
                    text_cell(row.thread),
                    {percent(row.cpu)},
                    {percent(row.steal), row.steal < kMuchSteal ? Style::plain : Style::red},
                    {percent(row.throttled)},
                    {human_duration(row.delay_p99_ns)},
                    {row.exits_per_s ? human_rate(static_cast<double>(*row.exits_per_s)) : "-"}});
  }
  std::string out = render_table({{"VM", false, 12, 0},
                                  {"PROJECT", false, 8, 3},
                                  {"THREAD", false, 0, 0},
                                  {"CPU", true, 0, 0},
                                  {"STEAL", true, 0, 0},
                                  {"THROTTLED", true, 0, 1},
                                  {"DELAY P99", true, 0, 2},
                                  {"EXITS/S", true, 0, 4}},
                                 rows, screen);
  if (rows.size() < cpus.size()) out += fmt::format("... and {} more\n", cpus.size() - rows.size());
  return out;
}

std::string render_nics(std::vector<NicRow> nics, std::size_t lines, const Screen& screen) {
  const auto bytes = [](const NicRow& row) { return row.received_bytes_per_s + row.sent_bytes_per_s; };
  std::ranges::sort(nics, [&bytes](const NicRow& a, const NicRow& b) {
    const double more = bytes(b);
    const double less = bytes(a);
    return std::tie(more, a.vm, a.uuid, a.nic) < std::tie(less, b.vm, b.uuid, b.nic);
  });
  std::vector<std::vector<Cell>> rows;
  for (const NicRow& row : nics) {
    if (lines != 0 && rows.size() == lines) break;
    rows.push_back({text_cell(row.vm),
                    text_cell(tenant_label(row.tenant, row.tenant_name)),
                    text_cell(row.nic),
                    {human_rate(row.received_per_s)},
                    {human_byte_rate(row.received_bytes_per_s)},
                    {human_rate(row.sent_per_s)},
                    {human_byte_rate(row.sent_bytes_per_s)},
                    {human_count(row.waiting)},
                    {human_duration(row.wait_p99_ns)},
                    {human_count(row.dropped), row.dropped == 0 ? Style::plain : Style::red}});
  }
  std::string out = render_table({{"VM", false, 12, 0},
                                  {"PROJECT", false, 8, 3},
                                  {"NIC", false, 0, 0},
                                  {"RECEIVED/S", true, 0, 2},
                                  {"BYTES/S", true, 0, 0},
                                  {"SENT/S", true, 0, 2},
                                  {"BYTES/S", true, 0, 0},
                                  {"WAITING", true, 0, 4},
                                  {"WAIT P99", true, 0, 5},
                                  {"DROPPED", true, 0, 1}},
                                 rows, screen);
  if (rows.size() < nics.size()) out += fmt::format("... and {} more\n", nics.size() - rows.size());
  return out;
}

std::string render_disks(TopView top, std::size_t lines, const Screen& screen) {
  std::ranges::sort(top.rows, [](const TopRow& a, const TopRow& b) {
    return std::tie(b.bytes_per_s, b.operations_per_s, a.vm, a.uuid, a.disk, a.direction) <
           std::tie(a.bytes_per_s, a.operations_per_s, b.vm, b.uuid, b.disk, b.direction);
  });
  std::vector<std::vector<Cell>> rows;
  double bytes_per_s = 0;
  double operations_per_s = 0;
  for (const TopRow& row : top.rows) {
    bytes_per_s += row.bytes_per_s;
    operations_per_s += row.operations_per_s;
    if (lines != 0 && rows.size() == lines) continue;
    rows.push_back({text_cell(row.vm),
                    text_cell(tenant_label(row.tenant, row.tenant_name)),
                    text_cell(row.disk),
                    text_cell(row.direction),
                    {human_rate(row.operations_per_s)},
                    {human_byte_rate(row.bytes_per_s)},
                    {human_duration(row.p50_ns)},
                    {human_duration(row.p95_ns)},
                    {human_duration(row.p99_ns)},
                    {human_duration(row.queue_p99_ns)},
                    {human_count(row.errors), row.errors == 0 ? Style::plain : Style::red}});
  }
  const double interval_s = top.rows.empty() ? 0 : top.rows.front().interval_s;
  std::string out = fmt::format("{:%Y-%m-%d %H:%M:%S} UTC",
                                fmt::gmtime(static_cast<std::time_t>(top.time_unix_ns / 1'000'000'000)));
  if (interval_s > 0) out += fmt::format("  last {:.3g} s", interval_s);
  out += fmt::format("  {} operations/s  {}\n", human_rate(operations_per_s), human_byte_rate(bytes_per_s));
  if (screen.columns != 0) out = fit(out.substr(0, out.size() - 1), screen.columns) + "\n";
  out += render_table({{"VM", false, 12, 0},
                       {"PROJECT", false, 8, 3},
                       {"DISK", false, 4, 0},
                       {"DIR", false, 0, 0},
                       {"OPS/S", true, 0, 0},
                       {"BYTES/S", true, 0, 0},
                       {"P50", true, 0, 2},
                       {"P95", true, 0, 4},
                       {"P99", true, 0, 0},
                       {"QUEUE P99", true, 0, 5},
                       {"ERRORS", true, 0, 1}},
                      rows, screen);
  if (rows.size() < top.rows.size()) out += fmt::format("... and {} more\n", top.rows.size() - rows.size());
  return out;
}

}  // namespace

std::string render_top(TopView top, std::size_t lines, const Screen& screen) {
  if (top.time_unix_ns == 0) return "No reading yet: the first comes after one interval.\n";
  // Of a screen the NICs have a quarter at most, the CPUs half of the rest, the disks what these leave.
  constexpr std::size_t kBetween = 3;
  std::size_t left = lines;
  const auto share = [&left, lines](std::size_t rows, std::size_t part) {
    if (lines == 0 || rows == 0) return std::size_t{0};  // all, or none
    const std::size_t own = std::max<std::size_t>(1, std::min(rows, left / part));
    left -= std::min(left, own + kBetween);
    return own;
  };
  const std::vector<NicRow> nics = std::move(top.nics);
  const std::vector<CpuRow> cpus = std::move(top.cpus);
  const std::size_t nic_lines = share(nics.size(), 4);
  const std::size_t cpu_lines = share(cpus.size(), 2);
  std::string out = render_disks(std::move(top), lines == 0 ? 0 : std::max<std::size_t>(1, left), screen);
  if (!nics.empty()) out += "\n" + render_nics(nics, nic_lines, screen);
  if (!cpus.empty()) out += "\n" + render_cpus(cpus, cpu_lines, screen);
  return out;
}

std::string render_check(const std::vector<CheckLine>& lines, const Screen& screen) {
  std::size_t widest = 0;
  for (const CheckLine& line : lines) widest = std::max(widest, display_width(safe_text(line.name)));
  std::string out;
  for (const CheckLine& line : lines) {
    const std::string name = safe_text(line.name);
    out += line.ok ? styled("ok", Style::green, screen)
                   : styled("--", line.effect.empty() ? Style::dim : Style::yellow, screen);
    out += fmt::format("  {}{}  {}\n", name, std::string(widest - display_width(name), ' '),
                       safe_text(line.detail));
    if (!line.effect.empty())
      out += fmt::format("    {}  {}\n", std::string(widest, ' '),
                         styled("-> " + safe_text(line.effect), Style::yellow, screen));
  }
  return out;
}

}  // namespace kvmscope::hostd
