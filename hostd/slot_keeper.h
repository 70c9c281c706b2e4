// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "bpf/tracer.h"
#include "hostd/core/clock.h"
#include "hostd/core/ids.h"
#include "hostd/vm_series.h"
#include "tenancy/ledger.h"
#include "tenancy/registry.h"
#include "virt/cpu_stat.h"

namespace kvmscope::hostd {

/// What one epoch has counted: the live incarnation, the closed ones, and what its devices are called.
struct EpochData {
  std::optional<bpf::SlotMaps> live;  ///< absent once drained
  tenancy::EpochTotals totals;
  std::vector<bpf::NumberedDisk> disks;
  DeviceNames names;
  std::vector<bpf::NicKey> nics;
  NicNames nic_names;
  GuestDisks guest_disks;
  core::SlotShape shape;  ///< of the last incarnation
  /// What CPU quotas had taken from the VM when it began to be counted.
  std::optional<virt::CpuThrottle> throttle_before;
  std::vector<DeviceLabel> devices;
};

/// Carries the registry's decisions out on the kernel side and keeps every slot's maps and totals.
///
/// Threads: the loop's only. What waits for RCU comes back as callbacks on the loop.
class SlotKeeper {
 public:
  /// Something went wrong that the daemon survives: for the log.
  using Report = std::function<void(const std::string& what, const core::Error& error)>;

  /// `cgroup_root`: where the unified hierarchy is; empty if there is none.
  SlotKeeper(bpf::Tracer& tracer, tenancy::Registry& registry, const core::Clock& clock, Report report,
             std::string cgroup_root);

  /// Fills the pool of spare slots.
  void start() { carry_out(registry_.start(now())); }

  void on_claimed(core::ProcessKey process, core::SlotIdentity identity, const std::string& comm,
                  const std::optional<tenancy::ProcessHint>& hint) {
    carry_out(registry_.on_claimed(process, identity, comm, hint, now()));
  }
  void on_process_exit(core::ProcessKey process) {
    // The VM's cgroups stay for a moment.
    if (const tenancy::Epoch* epoch = registry_.by_process(process)) read_steal(*epoch);
    carry_out(registry_.on_process_exit(process, now()));
  }
  void on_vm(const core::VmFacts& facts) { carry_out(registry_.on_vm(facts, now())); }
  void on_vm_gone(const core::VmUuid& uuid, core::ProcessKey process) {
    carry_out(registry_.on_vm_gone(uuid, process, now()));
  }
  /// What QEMU says of the guests' disks.
  void on_block_stats(const std::vector<virt::BlockReading>& readings);
  /// Before a reading: what the kernel side counts only when asked to.
  void bring_up_to_date();
  void tick();
  /// The daemon stops: who has no name by now will not get one here.
  void close_naming() {
    naming_closed_ = true;
    carry_out(registry_.close_naming(now()));
  }

  /// Takes a slot for a process found in /proc that the kernel did not see start. False if there is no spare
  /// slot now.
  bool claim(core::ProcessKey process, const std::string& comm,
             const std::optional<tenancy::ProcessHint>& hint);

  /// What this epoch counted so far, its device names brought up to date; nullptr if it never had a slot.
  const EpochData* data(const tenancy::Epoch& epoch);
  /// The tenancy of a slot that this epoch counts or counted in; 0 if it never had one.
  core::Generation generation(const tenancy::Epoch& epoch);
  /// Every stream has this closed epoch's last values.
  void forget(const tenancy::Epoch& epoch);

 private:
  tenancy::Now now() const { return {clock_.monotonic_ns(), clock_.unix_ns(), clock_.boottime_ns()}; }
  core::Incarnation next_incarnation() { return {++last_incarnation_}; }
  /// Appends to the one queue of actions: what an answer asks for comes after what was asked for before.
  void carry_out(tenancy::Actions actions);
  void check(const std::string& what, const core::Result<void>& result) const;

  void apply(const tenancy::InstallSpare& action);
  void apply(const tenancy::Claim& action);
  void apply(const tenancy::Rebind& action);
  void apply(const tenancy::BindTasks& action);
  void apply(const tenancy::NumberDisks& action);
  void apply(const tenancy::NumberNics& action);
  void apply(const tenancy::Grow& action);
  void apply(const tenancy::AddTenant& action);
  void apply(const tenancy::RemoveTenant& action);
  void apply(const tenancy::SetTenant& action);
  void apply(const tenancy::Unbind& action);
  void apply(const tenancy::Retire& action) { retire_when_idle(action.identity); }
  void apply(const tenancy::Discard& action);

  void grow(core::SlotIdentity identity, core::SlotShape wanted);
  void retire_when_idle(core::SlotIdentity identity);
  bool busy(core::SlotIdentity identity) const;
  void drain(core::SlotIdentity identity, bool discard);
  void read_steal(const tenancy::Epoch& epoch);
  bool from_its_start(const tenancy::Epoch& epoch) const;

  bpf::Tracer& tracer_;
  tenancy::Registry& registry_;
  const core::Clock& clock_;
  Report report_;
  std::string cgroup_root_;
  std::uint32_t last_incarnation_ = 1;  // 1 is the host's
  std::unordered_map<core::Generation, EpochData> epochs_;
  /// Epoch's serial -> generation: a closed epoch has no slot any more, what it counted is still here.
  std::unordered_map<std::uint64_t, core::Generation> generations_;
  std::deque<tenancy::Action> actions_;
  bool carrying_out_ = false;
  /// Shapes that are being installed: a slot grows once at a time.
  std::map<core::SlotIdentity, core::SlotShape> growing_;
  /// Slots whose tenancy is over but for requests under way, with the time of their retirement at the latest.
  std::map<core::SlotIdentity, std::uint64_t> retiring_;
  bool naming_closed_ = false;
};

}  // namespace kvmscope::hostd
