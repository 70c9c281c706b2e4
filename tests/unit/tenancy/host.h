// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tests/unit/tenancy/kernel.h"

namespace kvmscope::tenancy::testing {

using namespace std::chrono_literals;

inline RegistryConfig small_config() {
  RegistryConfig config;
  config.boot_id = "boot";
  config.max_slots = 12;
  config.max_tenants = 4;
  config.spare_slots = 3;
  config.spare_shape.disks = 4;
  config.unattributed_after = 60s;
  config.linger = 2s;
  return config;
}

inline core::Disk disk(const std::string& target) {
  core::Disk out;
  out.target = target;
  out.backing = core::DiskBacking::block_device;
  out.device_major = 8;
  return out;
}

/// A daemon in small: registry and kernel, actions carried out in order and answered at once, unless held
/// back.
class Host {
 public:
  explicit Host(RegistryConfig config = small_config())
      : kernel(config.max_slots, config.max_tenants), registry(std::move(config)) {
    apply(registry.start(now));
  }

  Now now{.monotonic_ns = 1'000'000'000'000,
          .unix_ns = 1'700'000'000'000'000'000,
          .boottime_ns = 2'000'000'000'000};
  Kernel kernel;
  Registry registry;
  Actions log;  ///< all that was carried out since clear()
  bool hold_installs = false;
  bool hold_retired = false;
  bool fail_growth = false;
  std::vector<core::SlotIdentity> held_retired;
  std::map<std::uint64_t, std::uint64_t> drained;  ///< final work by epoch serial
  std::uint64_t dropped = 0;                       ///< final work of slots that are nobody's

  void apply(Actions actions) {
    queue_.insert(queue_.end(), actions.begin(), actions.end());
    if (std::exchange(busy_, true)) return;
    while (!queue_.empty()) {
      const Action action = queue_.front();
      queue_.pop_front();
      log.push_back(action);
      std::visit([this](const auto& each) { run(each); }, action);
    }
    busy_ = false;
  }

  void advance(std::chrono::nanoseconds by) {
    const auto ns = static_cast<std::uint64_t>(by.count());
    now.monotonic_ns += ns;
    now.unix_ns += ns;
    now.boottime_ns += ns;
  }
  void tick(std::chrono::nanoseconds after = 0s) {
    advance(after);
    apply(registry.tick(now));
  }
  std::uint64_t ticks() const { return now.boottime_ns / 10'000'000; }

  /// A QEMU starts and takes its slot at exec, as far as there is a spare.
  core::ProcessKey start(std::uint32_t tgid, std::optional<ProcessHint> hint = std::nullopt) {
    advance(20ms);
    const core::ProcessKey process{tgid, ticks()};
    const core::SlotIdentity identity = kernel.exec(process);
    if (identity.slot != core::kHostSlot) {
      apply(registry.on_claimed(process, identity, "qemu-system-x86", hint, now));
    }
    return process;
  }
  /// A QEMU that was there before the daemon.
  core::ProcessKey start_untraced(std::uint32_t tgid) {
    advance(20ms);
    const core::ProcessKey process{tgid, ticks()};
    kernel.alive.insert(process);
    return process;
  }
  void exit(core::ProcessKey process) {
    kernel.alive.erase(process);
    apply(registry.on_process_exit(process, now));
  }
  core::VmFacts facts(const std::string& uuid, core::ProcessKey process,
                      const std::string& project = {}) const {
    core::VmFacts out;
    out.uuid = {uuid};
    out.name = "name-of-" + uuid;
    out.process = process;
    out.cgroup_ids = {process.tgid * 10ULL};
    out.disks = {disk("vda")};
    if (!project.empty()) out.nova.emplace().project_id = project;
    return out;
  }
  void vm(const core::VmFacts& seen) { apply(registry.on_vm(seen, now)); }
  void vm(const std::string& uuid, core::ProcessKey process, const std::string& project = {}) {
    vm(facts(uuid, process, project));
  }
  void gone(const std::string& uuid, core::ProcessKey process) {
    apply(registry.on_vm_gone({uuid}, process, now));
  }

  /// The epoch a process counts in; the test fails if there is none.
  const Epoch& epoch(core::ProcessKey process) const {
    const Epoch* found = registry.by_process(process);
    REQUIRE(found != nullptr);
    return *found;
  }
  std::vector<const Epoch*> in_state(EpochState state) const {
    std::vector<const Epoch*> out;
    for (const Epoch* each : registry.epochs()) {
      if (each->state == state) out.push_back(each);
    }
    return out;
  }
  template <typename T>
  std::vector<T> all() const {
    std::vector<T> out;
    for (const Action& action : log) {
      if (const T* match = std::get_if<T>(&action)) out.push_back(*match);
    }
    return out;
  }
  void release_retired() {
    hold_retired = false;
    for (const core::SlotIdentity identity : std::exchange(held_retired, {})) finish_retire(identity);
  }
  void reconfigure(RegistryConfig config) { apply(registry.reconfigure(std::move(config), now)); }

 private:
  void run(const InstallSpare& action) {
    kernel.install(action);
    if (hold_installs) return;
    kernel.offer(action.identity);
    apply(registry.on_installed(action.identity, now));
  }
  void run(const Claim& action) {
    const auto answer = kernel.claim(action.process);
    apply(answer ? registry.on_claimed(action.process, *answer, "qemu-system-x86", std::nullopt, now)
                 : registry.on_claim_failed(action.process, answer.error(), now));
  }
  void run(const Rebind& action) {
    const auto answer = kernel.rebind(action.process);
    apply(answer ? registry.on_rebound(action.process, *answer, now)
                 : registry.on_claim_failed(action.process, answer.error(), now));
  }
  void run(const BindTasks& action) { kernel.bind(action); }
  void run(const NumberDisks& action) { kernel.number(action); }
  void run(const NumberNics& action) { kernel.number(action); }
  void run(const Grow& action) {
    kernel.grow(action);
    kernel.grown(action, !fail_growth);
    apply(registry.on_grown(action.identity, !fail_growth, now));
  }
  void run(const AddTenant& action) { kernel.add_tenant(action); }
  void run(const RemoveTenant& action) { kernel.remove_tenant(action); }
  void run(const SetTenant& action) { kernel.set_tenant(action); }
  void run(const Unbind& action) { kernel.unbind(action.process); }
  void run(const Retire& action) { retire(action.identity); }
  void run(const Discard& action) {
    kernel.unbind(action.process);
    retire(action.identity);
  }
  void retire(core::SlotIdentity identity) {
    kernel.retire(identity);
    if (hold_retired) {
      held_retired.push_back(identity);
    } else {
      finish_retire(identity);
    }
  }
  void finish_retire(core::SlotIdentity identity) {
    const Epoch* epoch = registry.by_slot(identity);
    const std::uint64_t work = kernel.retired(identity);
    if (epoch == nullptr) {
      dropped += work;
    } else {
      drained[epoch->serial] += work;
    }
    apply(registry.on_retired(identity, now));
  }

  std::deque<Action> queue_;
  bool busy_ = false;
};

}  // namespace kvmscope::tenancy::testing
