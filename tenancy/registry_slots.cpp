// SPDX-License-Identifier: Apache-2.0
// An epoch's way through its slot: in by a claim, out by drain, retire, close.
#include <algorithm>
#include <utility>

#include "tenancy/registry_impl.h"

namespace kvmscope::tenancy {
namespace {

std::uint64_t deadline(const Now& now, std::chrono::nanoseconds after) {
  return now.monotonic_ns + static_cast<std::uint64_t>(std::max<std::int64_t>(after.count(), 0));
}

}  // namespace

Process& Registry::Impl::process(core::ProcessKey key) {
  Process& process = processes[key];
  process.key = key;
  return process;
}

Process* Registry::Impl::find(core::ProcessKey key) {
  const auto found = processes.find(key);
  return found == processes.end() ? nullptr : &found->second;
}

Record& Registry::Impl::add_record(Process& process, const Now& now) {
  Record& record = records[++last_serial];
  record.epoch.serial = last_serial;
  record.epoch.process = process.key;
  record.epoch.facts = process.facts;
  record.epoch.comm = process.comm;
  record.epoch.start_unix_ns = now.unix_ns;
  record.epoch.first_of_process = process.records == 0;
  process.record = &record;
  ++process.records;
  return record;
}

void Registry::Impl::enter(Process& process, core::SlotIdentity identity, std::uint64_t start_unix_ns,
                           const Now& now) {
  if (process.record != nullptr) leave(process, now);
  Record& record = add_record(process, now);
  record.epoch.slot = identity;
  record.epoch.start_unix_ns = start_unix_ns;
  record.shape = pool.shape(identity);
  record.owner = std::exchange(process.claimed_for, std::nullopt);
  process.slot_known = true;
  record.name_by_ns = deadline(now, config.unattributed_after);
  by_slot[identity] = &record;
  process.bind_due = process.number_due = true;
  process.waiting = false;
  process.rebind_refused_ns.reset();
  if (process.ended()) drain(record, now);
}

void Registry::Impl::leave(Process& process, const Now& now) {
  Record& record = *process.record;
  process.record = nullptr;
  if (record.epoch.state == EpochState::over_quota) {
    erase(record);
  } else {
    drain(record, now);
  }
}

void Registry::Impl::end(Process& process, const Now& now) {
  process.waiting = false;
  process.keep_until_ns = deadline(now, config.unattributed_after);
  if (process.record == nullptr) return;
  if (process.record->epoch.state == EpochState::over_quota) {
    leave(process, now);
  } else {
    drain(*process.record, now);
  }
}

void Registry::Impl::drain(Record& record, const Now& now) {
  if (record.epoch.state == EpochState::draining) return;
  record.epoch.state = EpochState::draining;
  record.epoch.end_unix_ns = now.unix_ns;
  record.retire_at_ns = deadline(now, config.linger);
}

void Registry::Impl::retire(Process& process, Record& record, Actions& out) {
  if (record.retire_asked || record.grow_to) return;
  const bool last_of_process = process.record == &record;
  if (last_of_process && process.asked != Process::Asked::nothing) return;  // the answer may be another slot
  if (last_of_process) out.emplace_back(Unbind{process.key});
  out.emplace_back(Retire{record.epoch.slot});
  pool.retire(record.epoch.slot);
  record.retire_asked = true;
}

void Registry::Impl::discard(Process& process, Actions& out) {
  Record& record = *process.record;
  ++(process.hint->capability_probe ? counts.probes_discarded : counts.containers_discarded);
  out.emplace_back(Discard{record.epoch.slot, process.key});
  pool.retire(record.epoch.slot);
  process.record = nullptr;
  erase(record);
}

void Registry::Impl::retired(core::SlotIdentity identity) {
  if (!pool.retired(identity)) return;
  const auto found = by_slot.find(identity);
  if (found == by_slot.end()) return;  // discarded
  Record& record = *found->second;
  record.retired = true;
  // Without an id it waits for libvirt, or for its deadline; the slot does not.
  if (!record.epoch.id.value.empty()) close(process(record.epoch.process), record);
}

void Registry::Impl::close(Process& process, Record& record) {
  record.epoch.state = EpochState::closed;
  by_slot.erase(record.epoch.slot);
  record.epoch.slot = {};
  if (process.record == &record) process.record = nullptr;
}

void Registry::Impl::erase(Record& record) {
  if (record.epoch.slot.slot != core::kHostSlot) by_slot.erase(record.epoch.slot);
  --process(record.epoch.process).records;
  records.erase(record.epoch.serial);
}

void Registry::Impl::forget_idle_processes(const Now& now) {
  for (auto it = processes.begin(); it != processes.end();) {
    const Process& process = it->second;
    const bool over =
        process.ended() ? now.monotonic_ns >= process.keep_until_ns : !process.facts.has_value();
    if (process.records != 0 || process.asked != Process::Asked::nothing || !over) {
      ++it;
      continue;
    }
    if (process.facts) {
      const auto vm = latest.find(process.facts->uuid);
      if (vm != latest.end() && vm->second == process.key) latest.erase(vm);
    }
    it = processes.erase(it);
  }
}

}  // namespace kvmscope::tenancy
