// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <random>

#include "tests/unit/tenancy/host.h"

namespace kvmscope::tenancy::testing {

struct SimulationOptions {
  std::uint32_t seed = 0;
  bool lossy = false;  ///< events get lost; an audit makes up for them
  bool owners_change = true;
  bool shared_tenants = false;  ///< few tenants with quotas, instead of two of its own for each VM
  std::uint32_t max_slots = 24;
};

/// A host with a kernel, a libvirt, and events between them and the registry that are delayed, reordered,
/// doubled and lost. Knows the truth about every unit of work, and checks after each step that nobody else is
/// charged for it.
class Simulation {
 public:
  explicit Simulation(const SimulationOptions& options);

  void step();
  /// Everything ends, every event arrives, every epoch is acknowledged: nothing may be left.
  void finish();

  std::uint64_t attributed_units = 0;
  std::uint64_t unattributed_units = 0;

 private:
  /// What a VM is for libvirt and its operator.
  struct Vm {
    std::string uuid;
    std::string owner;  ///< in its metadata; empty: not written yet
    std::string rule;   ///< owner by static rule, for ever
    std::set<std::string> owners_ever;
    core::ProcessKey process;  ///< tgid 0: not running
    std::size_t disks = 1;
  };
  /// What the registry has been told of a process.
  struct Life {
    std::size_t vm = 0;
    bool foreign = false;  ///< a probe or a container
    std::string told;
    std::uint64_t told_since_ns = 0;
    bool hint_known = false;
    std::vector<core::SlotIdentity> slots;
  };
  struct Unit {
    std::uint64_t count;
    std::string truth;
    std::string told;
  };
  struct Slot {
    core::ProcessKey process;
    std::string owner;  ///< the first that was told while it was the process's
    std::vector<Unit> units;
  };

  std::uint32_t below(std::uint32_t n) {
    return std::uniform_int_distribution<std::uint32_t>(0, n - 1)(random_);
  }
  bool chance(std::uint32_t percent) { return below(100) < percent; }
  std::string some_owner(std::size_t vm);
  static std::string truth(const Vm& vm) { return vm.owner.empty() ? vm.rule : vm.owner; }

  // the world
  void start_process(std::size_t vm, bool foreign);
  void stop_vm(Vm& vm);
  void change_owner(std::size_t vm);
  void work();
  void record_slot(core::ProcessKey process, core::SlotIdentity identity);

  // what libvirt says
  core::VmFacts facts(const Vm& vm) const;
  void say_seen(std::size_t vm);
  void say_gone(const Vm& vm, core::ProcessKey process);
  void relist();
  void contradict();

  // the daemon
  void later(std::function<void()> event) { pending_.push_back(std::move(event)); }
  void event(std::function<void()> event);  ///< may be lost or doubled
  void deliver_one();
  std::optional<ProcessHint> describe(core::ProcessKey process);
  void claimed(core::ProcessKey process, core::SlotIdentity identity);
  void seen(const core::VmFacts& facts);
  void retired(core::SlotIdentity identity);
  void audit();
  void tick(std::chrono::nanoseconds after);
  void reconfigure();
  void acknowledge(bool all);
  void apply(Actions actions);
  void run(const Action& action);

  void check_invariants();
  void check_epoch(const Epoch& epoch);
  void account(const Epoch& closed);

  SimulationOptions options_;
  std::mt19937 random_;
  RegistryConfig config_;
  Kernel kernel_;
  Registry registry_;
  Now now_{.monotonic_ns = 1'000'000'000, .unix_ns = 1'700'000'000'000'000'000, .boottime_ns = 5'000'000'000};
  std::deque<Action> queue_;
  bool busy_ = false;
  std::vector<std::function<void()>> pending_;
  std::vector<Vm> vms_;
  std::map<core::ProcessKey, Life> lives_;
  std::map<core::SlotIdentity, Slot> slots_;
  std::map<std::uint64_t, core::SlotIdentity> slot_of_;  ///< by serial
  std::map<std::uint64_t, std::vector<Unit>> drained_;
  std::map<std::uint64_t, std::string> closed_;  ///< final tenant by serial
  std::map<std::string, core::ProcessKey> reported_;
  bool libvirt_up_ = true;
  std::uint64_t counted_units_ = 0;
  std::uint64_t dropped_units_ = 0;
};

}  // namespace kvmscope::tenancy::testing
