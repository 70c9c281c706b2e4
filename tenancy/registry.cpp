// SPDX-License-Identifier: Apache-2.0
#include "tenancy/registry.h"

#include <algorithm>
#include <set>
#include <utility>

#include "tenancy/registry_impl.h"

namespace kvmscope::tenancy {

Registry::Impl::Impl(RegistryConfig initial)
    : config(std::move(initial)),
      resolver(config.sources, config.rules),
      pool(config.max_slots),
      tenants(config.max_tenants) {}

Registry::Registry(RegistryConfig config) : impl_(std::make_unique<Impl>(std::move(config))) {}
Registry::~Registry() = default;

namespace {

/// Without a spare no VM could ever enter.
std::uint32_t spares_wanted(const RegistryConfig& config) {
  return std::max(config.spare_slots, 1U);
}

}  // namespace

Actions Registry::start(const Now& /*now*/) {
  Actions out;
  impl_->pool.refill(spares_wanted(impl_->config), impl_->config.spare_shape, out);
  return out;
}

Actions Registry::on_installed(core::SlotIdentity identity, const Now& now) {
  Actions out;
  if (!impl_->pool.installed(identity, now.unix_ns)) return out;
  impl_->retries = 1;
  for (auto& [key, process] : impl_->processes) {
    if (impl_->retries == 0) break;
    if (process.waiting) impl_->reconcile(process, now, out);
  }
  impl_->retries = 0;
  return out;
}

Actions Registry::on_install_failed(core::SlotIdentity identity, const Now& /*now*/) {
  impl_->pool.install_failed(identity);
  return {};  // the next tick asks again: what failed now would fail again at once
}

Actions Registry::on_claimed(core::ProcessKey process, core::SlotIdentity identity, const std::string& comm,
                             const std::optional<ProcessHint>& hint, const Now& now) {
  Actions out;
  impl_->claimed(process, identity, comm, hint, now, out);
  impl_->pool.refill(spares_wanted(impl_->config), impl_->config.spare_shape, out);
  return out;
}

Actions Registry::on_claim_failed(core::ProcessKey process, const core::Error& error, const Now& now) {
  impl_->claim_failed(process, error, now);
  return {};
}

Actions Registry::on_rebound(core::ProcessKey process, core::SlotIdentity identity, const Now& now) {
  Actions out;
  impl_->rebound(process, identity, now, out);
  impl_->pool.refill(spares_wanted(impl_->config), impl_->config.spare_shape, out);
  return out;
}

Actions Registry::on_grown(core::SlotIdentity identity, bool ok, const Now& now) {
  Actions out;
  const auto found = impl_->by_slot.find(identity);
  if (found == impl_->by_slot.end() || !found->second->grow_to) return out;
  Record& record = *found->second;
  const core::SlotShape shape = *std::exchange(record.grow_to, std::nullopt);
  if (!ok) return out;  // asked for again at the next tick
  record.shape = shape;
  Process& process = impl_->process(record.epoch.process);
  if (process.record == &record) impl_->reconcile(process, now, out);
  return out;
}

Actions Registry::on_retired(core::SlotIdentity identity, const Now& /*now*/) {
  Actions out;
  impl_->retired(identity);
  impl_->pool.refill(spares_wanted(impl_->config), impl_->config.spare_shape, out);
  return out;
}

Actions Registry::on_process_exit(core::ProcessKey process, const Now& now) {
  impl_->exited(process, now);
  return {};  // the slot goes at the tick after `linger`
}

Actions Registry::on_vm(const core::VmFacts& facts, const Now& now) {
  Actions out;
  impl_->vm(facts, now, out);
  return out;
}

Actions Registry::on_vm_gone(const core::VmUuid& /*uuid*/, core::ProcessKey process, const Now& now) {
  impl_->vm_gone(process, now);
  return {};
}

Actions Registry::tick(const Now& now) {
  Actions out;
  for (auto it = impl_->records.begin(); it != impl_->records.end();) {
    Record& record = (it++)->second;
    Process& process = impl_->process(record.epoch.process);
    if (now.monotonic_ns >= record.name_by_ns) impl_->give_up_naming(process, record, now, out);
    if (record.epoch.state == EpochState::draining && now.monotonic_ns >= record.retire_at_ns) {
      impl_->retire(process, record, out);
    }
  }
  impl_->retries = impl_->pool.spare();
  for (auto& [key, process] : impl_->processes) impl_->reconcile(process, now, out);
  impl_->retries = 0;

  std::set<std::uint32_t> indices;
  for (const auto& [serial, record] : impl_->records) indices.insert(record.epoch.tenant_index);
  impl_->tenants.keep_only(indices, out);
  impl_->forget_idle_processes(now);
  impl_->pool.refill(spares_wanted(impl_->config), impl_->config.spare_shape, out);
  return out;
}

Actions Registry::reconfigure(RegistryConfig config, const Now& now) {
  config.boot_id = impl_->config.boot_id;
  config.max_slots = impl_->config.max_slots;
  config.max_tenants = impl_->config.max_tenants;
  impl_->config = std::move(config);
  impl_->resolver = TenantResolver(impl_->config.sources, impl_->config.rules);
  Actions out;
  for (auto& [key, process] : impl_->processes) {
    impl_->resolve(process);
    impl_->reconcile(process, now, out);
  }
  impl_->evict_beyond_quotas(now, out);
  impl_->pool.refill(spares_wanted(impl_->config), impl_->config.spare_shape, out);
  return out;
}

Actions Registry::close_naming(const Now& now) {
  Actions out;
  for (auto it = impl_->records.begin(); it != impl_->records.end();) {
    Record& record = (it++)->second;
    impl_->give_up_naming(impl_->process(record.epoch.process), record, now, out);
  }
  return out;
}

void Registry::forget(std::uint64_t serial) {
  const auto found = impl_->records.find(serial);
  if (found != impl_->records.end() && found->second.epoch.state == EpochState::closed)
    impl_->erase(found->second);
}

std::vector<const Epoch*> Registry::epochs() const {
  std::vector<const Epoch*> out;
  out.reserve(impl_->records.size());
  for (const auto& [serial, record] : impl_->records) out.push_back(&record.epoch);
  return out;
}

const Epoch* Registry::by_slot(core::SlotIdentity identity) const {
  const auto found = impl_->by_slot.find(identity);
  return found == impl_->by_slot.end() ? nullptr : &found->second->epoch;
}

const Epoch* Registry::by_process(core::ProcessKey process) const {
  const Process* found = impl_->find(process);
  return found == nullptr || found->record == nullptr ? nullptr : &found->record->epoch;
}

const Epoch* Registry::by_serial(std::uint64_t serial) const {
  const auto found = impl_->records.find(serial);
  return found == impl_->records.end() ? nullptr : &found->second.epoch;
}

RegistryStats Registry::stats() const {
  RegistryStats stats = impl_->counts;
  stats.slots_total = impl_->pool.total();
  stats.slots_in_use = impl_->pool.used();
  stats.slots_spare = impl_->pool.spare();
  stats.slots_retiring = impl_->pool.retiring();
  return stats;
}

std::map<std::uint32_t, core::TenantId> Registry::tenants() const {
  std::map<std::uint32_t, core::TenantId> out;
  for (const auto& [serial, record] : impl_->records) {
    if (record.epoch.tenant_index != 0) out.emplace(record.epoch.tenant_index, record.epoch.tenant);
  }
  return out;
}

}  // namespace kvmscope::tenancy
