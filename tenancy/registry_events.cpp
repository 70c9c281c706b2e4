// SPDX-License-Identifier: Apache-2.0
// What kernel and libvirt say, in whatever order, and how far each is believed.
#include <algorithm>

#include "tenancy/registry_impl.h"

namespace kvmscope::tenancy {
namespace {

constexpr std::uint64_t kNsPerTick = 10'000'000;

/// When a process that took its slot by itself began to count: when it started, but not before the slot was
/// there.
std::uint64_t counting_since(core::ProcessKey key, std::uint64_t installed_unix_ns, const Now& now) {
  const std::uint64_t age_ns = now.boottime_ns - std::min(now.boottime_ns, key.start_ticks * kNsPerTick);
  const std::uint64_t started = now.unix_ns - std::min(now.unix_ns, age_ns);
  return std::min(std::max(started, installed_unix_ns), now.unix_ns);
}

/// libvirt always hands QEMU the domain's UUID: another one on the command line means another process.
bool contradict(const ProcessHint& hint, const core::VmFacts& facts) {
  return !hint.uuid.value.empty() && hint.uuid != facts.uuid;
}

}  // namespace

void Registry::Impl::claimed(core::ProcessKey key, core::SlotIdentity identity, const std::string& comm,
                             const std::optional<ProcessHint>& hint, const Now& now, Actions& out) {
  const bool fresh = !by_slot.contains(identity) && pool.take(identity, now.unix_ns);
  if (!fresh && find(key) == nullptr) return;  // an echo of what is history
  Process& claimer = process(key);
  const bool asked = answered(claimer, Process::Asked::claim, fresh);
  if (hint) adopt_hint(claimer, *hint);
  if (!comm.empty()) claimer.comm = comm;
  if (fresh) {
    const std::uint64_t since = counting_since(key, pool.installed_unix_ns(identity), now);
    enter(claimer, identity, asked ? now.unix_ns : since, now);
  }
  reconcile(claimer, now, out);
}

void Registry::Impl::rebound(core::ProcessKey key, core::SlotIdentity identity, const Now& now,
                             Actions& out) {
  const bool fresh = !by_slot.contains(identity) && pool.take(identity, now.unix_ns);
  if (!fresh && find(key) == nullptr) return;
  Process& mover = process(key);
  answered(mover, Process::Asked::rebind, fresh);
  if (fresh) enter(mover, identity, now.unix_ns, now);
  reconcile(mover, now, out);
}

/// Whether what was asked for is answered hereby. An answer that gives nothing new is a refusal.
bool Registry::Impl::answered(Process& process, Process::Asked question, bool fresh) {
  if (process.asked != question) return false;
  process.asked = Process::Asked::nothing;
  process.waiting = !fresh && !process.ended();
  return true;
}

void Registry::Impl::claim_failed(core::ProcessKey key, const core::Error& error, const Now& now) {
  Process* process = find(key);
  if (process == nullptr || process->asked == Process::Asked::nothing) return;
  ++counts.claims_failed;
  const bool rebind = process->asked == Process::Asked::rebind;
  process->asked = Process::Asked::nothing;
  process->claimed_for.reset();
  process->slot_known = true;
  if (error.code() == core::ErrorCode::not_found) {
    exited(key, now);
  } else if (!process->ended()) {
    process->waiting = true;
    if (rebind && !process->rebind_refused_ns) process->rebind_refused_ns = now.monotonic_ns;
  }
}

void Registry::Impl::exited(core::ProcessKey key, const Now& now) {
  // Remembered even if unknown: a lost claim that is made up for later must not bring it to life.
  Process& dead = process(key);
  if (dead.exited) return;
  dead.exited = true;
  end(dead, now);
}

void Registry::Impl::vm(const core::VmFacts& facts, const Now& now, Actions& out) {
  if (facts.process.tgid == 0 || !believable(find(facts.process), facts)) return;
  const bool running = is_latest(facts, now);
  Process& qemu = process(facts.process);
  if (running) revive(qemu, now, out);
  if (!running) vm_gone(qemu.key, now);
  if (qemu.ended() && qemu.owner) {
    const std::optional<Owner> owner = resolver.by_facts(facts);
    if (owner && owner->tenant != qemu.owner->tenant) return;  // who had it when it ended has it for good
  }
  adopt_facts(qemu, facts);
  reconcile(qemu, now, out);
}

void Registry::Impl::vm_gone(core::ProcessKey key, const Now& now) {
  Process* process = find(key);
  if (process == nullptr || process->gone) return;
  process->gone = true;
  if (!process->exited) end(*process, now);
}

/// A process never changes its domain. Of two that are named, its own command line decides, else the first.
bool Registry::Impl::believable(const Process* process, const core::VmFacts& facts) const {
  if (process == nullptr) return true;
  if (process->hint && contradict(*process->hint, facts)) return false;
  const bool confirmed = process->hint && process->hint->uuid == facts.uuid;
  return confirmed || !process->facts || process->facts->uuid == facts.uuid;
}

/// A VM runs in one process at a time, the youngest; the one before it has ended, whether or not anybody said
/// so.
bool Registry::Impl::is_latest(const core::VmFacts& facts, const Now& now) {
  const auto [vm, first] = latest.try_emplace(facts.uuid, facts.process);
  if (first || vm->second == facts.process) return true;
  if (facts.process.start_ticks < vm->second.start_ticks) return false;
  vm_gone(vm->second, now);
  vm->second = facts.process;
  return true;
}

void Registry::Impl::adopt_hint(Process& process, const ProcessHint& hint) {
  process.hint = hint;
  if (!process.facts || !contradict(hint, *process.facts)) return;
  if (const auto vm = latest.find(process.facts->uuid); vm->second == process.key) latest.erase(vm);
  process.facts.reset();
  process.owner.reset();
}

void Registry::Impl::adopt_facts(Process& process, const core::VmFacts& facts) {
  const bool news = !process.facts.has_value();
  process.bind_due |=
      news || process.facts->cgroup_ids != facts.cgroup_ids || process.facts->helpers != facts.helpers;
  process.number_due |= news || process.facts->disks != facts.disks || process.facts->nics != facts.nics;
  process.facts = facts;
  resolve(process);
}

/// libvirt had said the VM was gone and now shows it running, in the same process.
void Registry::Impl::revive(Process& process, const Now& now, Actions& out) {
  if (process.exited || !process.gone) return;
  process.gone = false;
  if (process.record == nullptr) return;
  Record& record = *process.record;
  if (record.retire_asked) {
    process.record = nullptr;
    return;
  }
  const core::TenantId tenant = record.epoch.tenant;
  record.epoch.end_unix_ns = 0;
  record.epoch.state = !tenant.value.empty() ? EpochState::attributed
                       : record.unattributed ? EpochState::unattributed
                                             : EpochState::unnamed;
  if (process.owner && !tenant.value.empty() && in_use(tenant) > quota(tenant).slots)
    evict(process, now, out);
}

}  // namespace kvmscope::tenancy
