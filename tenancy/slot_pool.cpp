// SPDX-License-Identifier: Apache-2.0
#include "tenancy/slot_pool.h"

#include <algorithm>
#include <limits>

namespace kvmscope::tenancy {

SlotPool::SlotPool(std::uint32_t max_slots) : slots_(std::max(max_slots, 1U)) {
  for (std::uint32_t slot = 1; slot < slots_.size(); ++slot) free_.push_back(slot);
  counts_[static_cast<std::size_t>(State::free)] = total();
}

void SlotPool::refill(std::uint32_t target, const core::SlotShape& shape, Actions& out) {
  while (count(State::spare) + count(State::installing) < target && !free_.empty() &&
         next_generation_ != std::numeric_limits<std::uint32_t>::max()) {
    const core::SlotIdentity identity{{free_.front()}, {next_generation_++}};
    free_.pop_front();
    Slot& slot = slots_[identity.slot.value];
    slot.generation = identity.generation;
    slot.shape = shape;
    move(slot, State::installing);
    out.emplace_back(InstallSpare{identity, shape});
  }
}

bool SlotPool::installed(core::SlotIdentity identity, std::uint64_t unix_ns) {
  Slot* slot = find(identity, State::installing);
  if (slot == nullptr) return false;
  slot->installed_unix_ns = unix_ns;
  move(*slot, State::spare);
  return true;
}

bool SlotPool::install_failed(core::SlotIdentity identity) {
  Slot* slot = find(identity, State::installing);
  if (slot == nullptr) return false;
  move(*slot, State::free);
  free_.push_back(identity.slot.value);
  return true;
}

bool SlotPool::take(core::SlotIdentity identity, std::uint64_t unix_ns) {
  installed(identity, unix_ns);
  Slot* slot = find(identity, State::spare);
  if (slot == nullptr) return false;
  move(*slot, State::used);
  return true;
}

bool SlotPool::retire(core::SlotIdentity identity) {
  Slot* slot = find(identity, State::used);
  if (slot == nullptr) return false;
  move(*slot, State::retiring);
  return true;
}

bool SlotPool::retired(core::SlotIdentity identity) {
  Slot* slot = find(identity, State::retiring);
  if (slot == nullptr) return false;
  move(*slot, State::free);
  free_.push_back(identity.slot.value);
  return true;
}

SlotPool::Slot* SlotPool::find(core::SlotIdentity identity, State expected) {
  if (identity.slot == core::kHostSlot || identity.slot.value >= slots_.size()) return nullptr;
  Slot& slot = slots_[identity.slot.value];
  return slot.state == expected && slot.generation == identity.generation ? &slot : nullptr;
}

void SlotPool::move(Slot& slot, State to) {
  --counts_[static_cast<std::size_t>(slot.state)];
  ++counts_[static_cast<std::size_t>(to)];
  slot.state = to;
}

}  // namespace kvmscope::tenancy
