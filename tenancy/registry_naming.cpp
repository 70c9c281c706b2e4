// SPDX-License-Identifier: Apache-2.0
// Whose an epoch is: first naming, change of owner, quotas, and what the kernel side must know of it.
#include <algorithm>
#include <iterator>

#include "tenancy/registry_impl.h"

namespace kvmscope::tenancy {
namespace {

bool has_slot(const Record* record) {
  return record != nullptr && record->epoch.state != EpochState::over_quota;
}

bool owned(const Record& record) {
  return !record.epoch.tenant.value.empty();
}

/// Not a VM of this host's libvirt, as far as anybody has said.
bool foreign(const Process& process) {
  return !process.facts && process.hint && (process.hint->capability_probe || process.hint->in_container);
}

/// Images of the disk that the host's block layer shows.
std::size_t images(const core::Disk& disk) {
  return disk.more_images.size() + (disk.backing != core::DiskBacking::invisible ? 1 : 0);
}

}  // namespace

void Registry::Impl::reconcile(Process& process, const Now& now, Actions& out) {
  const bool was_owned = process.record != nullptr && owned(*process.record);
  if (process.owner) adopt(process, out);
  if (!has_slot(process.record)) return ask_for_slot(process, now, out);
  Record& record = *process.record;
  if (foreign(process) && !record.owner && !record.retire_asked) return discard(process, out);
  if (process.ended()) return;
  if (process.owner && record.owner->tenant != process.owner->tenant) {
    hand_over(process, now, out);
  } else if (process.owner) {
    record.epoch.tenancy_source = owned(record) ? process.owner->source : "";
    const bool came_back = process.rebind_refused_ns.has_value();
    process.waiting = false;
    process.rebind_refused_ns.reset();
    const core::TenantId& tenant = record.epoch.tenant;
    const bool newcomer = owned(record) && (!was_owned || came_back);
    if (newcomer && in_use(tenant) > quota(tenant).slots) return evict(process, now, out);
  }
  if (process.record == &record) furnish(process, out);
}

/// What a process counted before anybody was named belongs to the first who is.
void Registry::Impl::adopt(Process& process, Actions& out) {
  if (process.records == 0 || (process.records == 1 && process.record != nullptr && owned(*process.record)))
    return;
  for (auto& [serial, record] : records) {
    if (record.epoch.process != process.key || owned(record) || record.epoch.state == EpochState::closed)
      continue;
    if (!record.owner) record.owner = process.owner;
    label(process, record, out);
  }
}

void Registry::Impl::resolve(Process& process) {
  std::optional<Owner> owner;
  if (process.facts) {
    owner = resolver.by_facts(*process.facts);
  } else if (process.hint && process.trust_hint) {
    owner = resolver.by_hint(*process.hint);
  }
  // An owner that vanishes is not a change of owner: metadata is rewritten in two steps, rules are edited.
  const bool vanished = process.owner && !owner;
  const bool settled = process.ended() && process.owner;
  if (owner && !settled) process.owner = owner;
  if (process.record == nullptr) return;
  process.record->epoch.owner_vanished = vanished;
  update_facts(process, *process.record);
}

/// Facts name users and projects: those of the next owner are not for the epoch of the one before.
void Registry::Impl::update_facts(const Process& process, Record& record) {
  if (!process.facts) return;
  const bool same_owner = record.owner && process.owner && record.owner->tenant == process.owner->tenant;
  if (!record.owner || same_owner) record.epoch.facts = process.facts;
}

void Registry::Impl::label(Process& process, Record& record, Actions& out) {
  const core::TenantId& tenant = record.owner->tenant;
  const std::optional<std::uint32_t> index = tenants.index_of(tenant, quota(tenant).ring_bytes, out);
  if (!index) return;  // no room for another tenant: nobody's until there is
  record.epoch.former_id = record.epoch.id;
  record.epoch.id = next_id(process, tenant);
  record.epoch.tenant = tenant;
  record.epoch.tenant_index = *index;
  record.epoch.tenancy_source = record.owner->source;
  if (record.epoch.state != EpochState::draining) record.epoch.state = EpochState::attributed;
  if (!record.retire_asked) out.emplace_back(SetTenant{record.epoch.slot, *index});
  if (record.retired) close(process, record);
}

void Registry::Impl::hand_over(Process& process, const Now& now, Actions& out) {
  if (process.asked != Process::Asked::nothing) return;
  const core::TenantId& heir = process.owner->tenant;
  if (in_use(heir) >= quota(heir).slots) return evict(process, now, out);
  if (process.waiting) {
    const auto patience_ns = static_cast<std::uint64_t>(config.linger.count());
    if (process.rebind_refused_ns && now.monotonic_ns - *process.rebind_refused_ns >= patience_ns) {
      // No spare in sight: rather nobody's for a while than the former owner's. His slot becomes a spare.
      out.emplace_back(Unbind{process.key});
      return leave(process, now);
    }
    if (retries == 0) return;
    --retries;
  }
  out.emplace_back(Rebind{process.key});
  process.asked = Process::Asked::rebind;
}

void Registry::Impl::furnish(Process& process, Actions& out) {
  if (!process.facts) return;
  Record& record = *process.record;
  if (process.bind_due) {
    out.emplace_back(BindTasks{process.key, process.facts->cgroup_ids, process.facts->helpers});
    process.bind_due = false;
  }
  const std::vector<core::Disk>& disks = process.facts->disks;
  const Quota& limits = quota(record.epoch.tenant);
  std::size_t visible = 0;
  for (const core::Disk& disk : disks) visible += images(disk);
  const auto on_tap = [](const core::Nic& nic) { return nic.ifindex != 0; };
  const auto taps = static_cast<std::size_t>(std::ranges::count_if(process.facts->nics, on_tap));
  if (process.number_due) {
    NumberDisks number{record.epoch.slot, {}, limits.disks_per_vm};
    std::copy_if(disks.begin(), disks.end(), std::back_inserter(number.disks), images);
    if (visible != 0) out.emplace_back(std::move(number));
    NumberNics nics{record.epoch.slot, {}, limits.nics_per_vm};
    std::ranges::copy_if(process.facts->nics, std::back_inserter(nics.nics), on_tap);
    if (taps != 0) out.emplace_back(std::move(nics));
    process.number_due = false;
  }
  const auto rows = [](std::size_t devices, std::uint16_t limit) {  // one is "other"
    return static_cast<std::uint16_t>(std::min<std::size_t>(devices + 1, limit));
  };
  const core::SlotShape wanted = {
      .disks = rows(visible, limits.disks_per_vm),
      .vcpus = rows(std::max(process.facts->max_vcpus, process.facts->vcpus), limits.vcpus_per_vm),
      .nics = rows(taps, limits.nics_per_vm)};
  if (!record.shape.covers(wanted) && !record.grow_to) {
    record.grow_to = record.shape.with(wanted);
    out.emplace_back(Grow{record.epoch.slot, *record.grow_to});
  }
}

void Registry::Impl::ask_for_slot(Process& process, const Now& now, Actions& out) {
  if (!process.facts || process.ended() || process.asked != Process::Asked::nothing) return;
  // Over quota or not, the first claim tells whether the kernel gave it a slot at exec: who counts there must
  // be known.
  if (process.slot_known && process.owner &&
      in_use(process.owner->tenant) >= quota(process.owner->tenant).slots) {
    return note_over_quota(process, now, out);
  }
  if (process.waiting) {
    if (retries == 0) return;
    --retries;
  }
  out.emplace_back(Claim{process.key});
  process.claimed_for = process.owner;
  process.asked = Process::Asked::claim;
}

void Registry::Impl::evict(Process& process, const Now& now, Actions& out) {
  out.emplace_back(Unbind{process.key});
  leave(process, now);
  note_over_quota(process, now, out);
}

void Registry::Impl::evict_beyond_quotas(const Now& now, Actions& out) {
  std::map<core::TenantId, std::uint32_t> slots;
  for (auto& [key, process] : processes) {
    if (process.ended() || process.asked != Process::Asked::nothing || !has_slot(process.record)) continue;
    const core::TenantId tenant = process.record->epoch.tenant;
    if (!owned(*process.record) || !process.owner || process.owner->tenant != tenant) continue;
    if (++slots[tenant] > quota(tenant).slots) evict(process, now, out);
  }
}

void Registry::Impl::note_over_quota(Process& process, const Now& now, Actions& out) {
  process.waiting = false;
  const Owner& owner = *process.owner;
  if (process.record != nullptr && process.record->epoch.tenant == owner.tenant) return;
  if (process.record != nullptr) leave(process, now);
  Record& record = add_record(process, now);
  record.owner = owner;
  Epoch& epoch = record.epoch;
  epoch.state = EpochState::over_quota;
  epoch.tenant = owner.tenant;
  epoch.tenant_index = tenants.index_of(owner.tenant, quota(owner.tenant).ring_bytes, out).value_or(0);
  epoch.tenancy_source = owner.source;
  ++counts.over_quota;
}

void Registry::Impl::give_up_naming(Process& process, Record& record, const Now& now, Actions& out) {
  const bool counted = record.epoch.slot.slot != core::kHostSlot;
  if (!counted || owned(record) || record.unattributed) return;
  process.trust_hint = true;
  resolve(process);
  reconcile(process, now, out);
  if (owned(record)) return;
  record.unattributed = true;
  record.epoch.id = next_id(process, {});
  ++counts.unattributed_epochs;
  if (record.epoch.state != EpochState::draining) record.epoch.state = EpochState::unattributed;
  if (record.retired) close(process, record);
}

core::EpochId Registry::Impl::next_id(Process& process, const core::TenantId& tenant) {
  core::VmUuid uuid;
  if (process.hint) uuid = process.hint->uuid;
  if (process.facts) uuid = process.facts->uuid;
  return epoch_id(config.boot_id, uuid, process.key, tenant, process.ids_given[tenant]++);
}

const Quota& Registry::Impl::quota(const core::TenantId& tenant) const {
  const auto own = config.tenant_quotas.find(tenant);
  return own == config.tenant_quotas.end() ? config.default_quota : own->second;
}

std::uint32_t Registry::Impl::in_use(const core::TenantId& tenant) const {
  std::uint32_t slots = 0;
  for (const auto& [key, process] : processes) {
    if (process.ended()) continue;
    const bool holds = has_slot(process.record) && process.record->epoch.tenant == tenant;
    const bool will_hold =
        process.asked != Process::Asked::nothing && process.owner && process.owner->tenant == tenant;
    if (holds || will_hold) ++slots;
  }
  return slots;
}

}  // namespace kvmscope::tenancy
