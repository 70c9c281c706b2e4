// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tenancy/registry.h"
#include "tests/support/catch.h"

namespace kvmscope::tenancy::testing {

inline void check(bool ok, const std::string& what) {
  if (!ok) FAIL(what);
}

/// The kernel side as the registry sees it: carries actions out and fails the test at any that is not legal.
class Kernel {
 public:
  struct Slot {
    core::Generation generation;
    core::SlotShape shape;
    std::uint32_t tenant_index = 0;
    bool spare = false;     ///< in the pool
    bool retiring = false;  ///< RCU is being waited for
    bool growing = false;
    core::ProcessKey user;
    std::uint64_t work = 0;
  };

  Kernel(std::uint32_t max_slots, std::uint32_t max_tenants)
      : max_slots_(max_slots), max_tenants_(max_tenants) {}

  std::set<core::ProcessKey> alive;
  std::map<core::ProcessKey, core::SlotIdentity> bound;
  std::map<std::uint32_t, Slot> slots;
  std::map<std::uint32_t, core::TenantId> rings;

  // --- what happens by itself
  /// A process takes a spare slot, as at exec; slot 0 if there is none.
  core::SlotIdentity take(core::ProcessKey process) {
    for (auto& [number, slot] : slots) {
      if (!slot.spare) continue;
      slot.spare = false;
      slot.user = process;
      bound[process] = {{number}, slot.generation};
      return bound[process];
    }
    return {};
  }
  core::SlotIdentity exec(core::ProcessKey process) {
    alive.insert(process);
    return take(process);
  }
  /// Counts in the process's slot. False: it has none.
  bool work(core::ProcessKey process, std::uint64_t units) {
    const auto slot = bound.find(process);
    if (slot == bound.end()) return false;
    slots.at(slot->second.slot.value).work += units;
    return true;
  }

  // --- actions
  void install(const InstallSpare& action) {
    const auto [slot, generation] = action.identity;
    check(slot.value > 0 && slot.value < max_slots_, "slot out of range");
    check(!slots.contains(slot.value), "install on a slot that is in use");
    check(generation.value > 1 && generations_.insert(generation.value).second, "generation used before");
    slots[slot.value] = {.generation = generation, .shape = action.shape, .user = {}};
  }
  void offer(core::SlotIdentity identity) { find(identity).spare = true; }
  void install_failed(core::SlotIdentity identity) { slots.erase(identity.slot.value); }

  core::Result<core::SlotIdentity> claim(core::ProcessKey process) {
    if (bound.contains(process)) return bound[process];
    if (!alive.contains(process)) return core::fail(core::ErrorCode::not_found, "gone");
    const core::SlotIdentity identity = take(process);
    if (identity.slot == core::kHostSlot) return core::fail(core::ErrorCode::resource_exhausted, "no spare");
    return identity;
  }
  core::Result<core::SlotIdentity> rebind(core::ProcessKey process) {
    check(bound.contains(process), "rebind of a process without a slot");
    if (!alive.contains(process)) return core::fail(core::ErrorCode::not_found, "gone");
    const core::SlotIdentity identity = take(process);
    if (identity.slot == core::kHostSlot) return core::fail(core::ErrorCode::resource_exhausted, "no spare");
    return identity;
  }
  void bind(const BindTasks& action) {
    check(bound.contains(action.process), "bind of a process without a slot");
  }
  void number(const NumberDisks& action) {
    used(action.identity);
    for (const core::Disk& disk : action.disks) {
      check(disk.backing != core::DiskBacking::invisible, "a disk without a key is numbered");
    }
  }
  void number(const NumberNics& action) {
    used(action.identity);
    for (const core::Nic& nic : action.nics) check(nic.ifindex != 0, "a NIC without a tap is numbered");
  }
  void grow(const Grow& action) {
    Slot& slot = used(action.identity);
    check(!slot.growing && action.shape.covers(slot.shape) && action.shape != slot.shape, "pointless growth");
    slot.growing = true;
  }
  void grown(const Grow& action, bool ok) {
    Slot& slot = used(action.identity);
    slot.growing = false;
    if (ok) slot.shape = action.shape;
  }
  void add_tenant(const AddTenant& action) {
    check(action.index > 0 && action.index < max_tenants_, "tenant index out of range");
    for (const auto& [index, tenant] : rings) check(tenant != action.tenant, "tenant has a ring already");
    check(rings.emplace(action.index, action.tenant).second, "ring index in use");
  }
  void remove_tenant(const RemoveTenant& action) {
    check(rings.erase(action.index) == 1, "no such ring");
    for (const auto& [number, slot] : slots)
      check(slot.tenant_index != action.index, "ring still in use by a slot");
  }
  void set_tenant(const SetTenant& action) {
    check(rings.contains(action.index), "slot set to a ring that is not there");
    used(action.identity).tenant_index = action.index;
  }
  void unbind(core::ProcessKey process) {
    check(bound.erase(process) == 1, "unbind of a process without a slot");
  }
  void retire(core::SlotIdentity identity) {
    Slot& slot = used(identity);
    check(!slot.growing, "retired while it grows");
    for (const auto& [process, bound_to] : bound)
      check(bound_to != identity, "retired under a bound process");
    slot.retiring = true;
  }
  /// The wait is over: what the slot counted, final.
  std::uint64_t retired(core::SlotIdentity identity) {
    Slot& slot = find(identity);
    check(slot.retiring, "was not retired");
    const std::uint64_t work = slot.work;
    slots.erase(identity.slot.value);
    return work;
  }

  Slot& find(core::SlotIdentity identity) {
    const auto slot = slots.find(identity.slot.value);
    check(slot != slots.end() && slot->second.generation == identity.generation,
          "no such slot of this generation");
    return slot->second;
  }
  std::uint32_t spares() const {
    return static_cast<std::uint32_t>(
        std::count_if(slots.begin(), slots.end(), [](const auto& entry) { return entry.second.spare; }));
  }

 private:
  Slot& used(core::SlotIdentity identity) {
    Slot& slot = find(identity);
    check(!slot.spare && !slot.retiring && slot.user.tgid != 0, "slot is not in use");
    return slot;
  }

  std::uint32_t max_slots_;
  std::uint32_t max_tenants_;
  std::set<std::uint32_t> generations_;
};

}  // namespace kvmscope::tenancy::testing
