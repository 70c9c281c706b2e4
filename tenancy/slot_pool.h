// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "tenancy/registry.h"

namespace kvmscope::tenancy {

/// Where every slot but the host's stands: free -> installing -> spare -> used -> retiring -> free. A
/// transition that does not fit the slot's state and generation is refused (false): a late or repeated event.
class SlotPool {
 public:
  explicit SlotPool(std::uint32_t max_slots);

  /// Asks for as many installations as are missing to `target` spares, while free slots remain.
  void refill(std::uint32_t target, const core::SlotShape& shape, Actions& out);

  bool installed(core::SlotIdentity identity, std::uint64_t unix_ns);
  bool install_failed(core::SlotIdentity identity);
  /// A process has it. Its on_installed() may be late: a claim proves that it is there.
  bool take(core::SlotIdentity identity, std::uint64_t unix_ns);
  bool retire(core::SlotIdentity identity);
  bool retired(core::SlotIdentity identity);

  /// Of its maps when it was installed.
  core::SlotShape shape(core::SlotIdentity identity) const { return slots_[identity.slot.value].shape; }
  std::uint64_t installed_unix_ns(core::SlotIdentity identity) const {
    return slots_[identity.slot.value].installed_unix_ns;
  }

  std::uint32_t total() const { return static_cast<std::uint32_t>(slots_.size() - 1); }
  std::uint32_t spare() const { return count(State::spare); }
  std::uint32_t used() const { return count(State::used); }
  std::uint32_t retiring() const { return count(State::retiring); }

 private:
  enum class State : std::uint8_t { free, installing, spare, used, retiring };
  struct Slot {
    State state = State::free;
    core::SlotShape shape;
    core::Generation generation;
    std::uint64_t installed_unix_ns = 0;
  };

  Slot* find(core::SlotIdentity identity, State expected);
  void move(Slot& slot, State to);
  std::uint32_t count(State state) const { return counts_[static_cast<std::size_t>(state)]; }

  std::vector<Slot> slots_;
  std::deque<std::uint32_t> free_;  ///< the longest unused is the next one used
  std::uint32_t counts_[5] = {};
  std::uint32_t next_generation_ = 2;  ///< 1 is the host's
};

}  // namespace kvmscope::tenancy
