// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>

#include "tenancy/registry.h"
#include "tenancy/slot_pool.h"
#include "tenancy/tenant_resolver.h"
#include "tenancy/tenant_table.h"

namespace kvmscope::tenancy {

/// An epoch and what only the registry needs to know about it.
struct Record {
  Epoch epoch;
  std::optional<Owner> owner;    ///< the first that was named while it counted; its tenant once he has a ring
  std::uint64_t name_by_ns = 0;  ///< monotonic: unattributed from then on, unless somebody owns it
  std::uint64_t retire_at_ns = 0;          ///< monotonic, while draining
  core::SlotShape shape;                   ///< of its maps
  std::optional<core::SlotShape> grow_to;  ///< asked for
  bool unattributed = false;
  bool retire_asked = false;
  bool retired = false;
};

/// A QEMU process: what is known of it, and the epoch it counts in just now.
struct Process {
  enum class Asked : std::uint8_t { nothing, claim, rebind };

  core::ProcessKey key;
  std::string comm;
  std::optional<ProcessHint> hint;
  std::optional<core::VmFacts> facts;
  std::optional<Owner> owner;        ///< the last that any source named
  Record* record = nullptr;          ///< draining if the process has ended; over quota: without a slot
  Asked asked = Asked::nothing;      ///< an answer is due
  std::optional<Owner> claimed_for;  ///< the owner when the claim was asked for
  bool slot_known = false;           ///< the kernel has said which slot it has, or that it has none
  bool waiting = false;              ///< was refused: asks again when there are spares
  std::optional<std::uint64_t> rebind_refused_ns;
  bool trust_hint = false;  ///< libvirt had its time to speak
  bool bind_due = false;
  bool number_due = false;
  bool exited = false;              ///< the kernel says so: for good
  bool gone = false;                ///< libvirt says so: until it says otherwise
  std::uint64_t keep_until_ns = 0;  ///< ended ones are remembered so long, for events that come late
  std::uint32_t records = 0;
  std::map<core::TenantId, std::uint32_t> ids_given;

  bool ended() const { return exited || gone; }
};

/// Oldest first: who came first keeps his place when a quota is short.
struct ByAge {
  bool operator()(core::ProcessKey a, core::ProcessKey b) const {
    return std::tie(a.start_ticks, a.tgid) < std::tie(b.start_ticks, b.tgid);
  }
};

/// Events change what is known of a process; reconcile() compares that with the epoch it counts in and asks
/// for what is missing. It may be called at any time and asks for nothing twice.
struct Registry::Impl {
  explicit Impl(RegistryConfig initial);

  // registry_events.cpp
  void claimed(core::ProcessKey key, core::SlotIdentity identity, const std::string& comm,
               const std::optional<ProcessHint>& hint, const Now& now, Actions& out);
  void claim_failed(core::ProcessKey key, const core::Error& error, const Now& now);
  void rebound(core::ProcessKey key, core::SlotIdentity identity, const Now& now, Actions& out);
  bool answered(Process& process, Process::Asked question, bool fresh);
  void exited(core::ProcessKey key, const Now& now);
  void vm(const core::VmFacts& facts, const Now& now, Actions& out);
  void vm_gone(core::ProcessKey key, const Now& now);
  bool believable(const Process* process, const core::VmFacts& facts) const;
  bool is_latest(const core::VmFacts& facts, const Now& now);
  void adopt_hint(Process& process, const ProcessHint& hint);
  void adopt_facts(Process& process, const core::VmFacts& facts);
  void revive(Process& process, const Now& now, Actions& out);

  // registry_naming.cpp
  void reconcile(Process& process, const Now& now, Actions& out);
  void resolve(Process& process);
  static void update_facts(const Process& process, Record& record);
  void adopt(Process& process, Actions& out);
  void label(Process& process, Record& record, Actions& out);
  void hand_over(Process& process, const Now& now, Actions& out);
  void furnish(Process& process, Actions& out);
  void ask_for_slot(Process& process, const Now& now, Actions& out);
  void evict(Process& process, const Now& now, Actions& out);
  void evict_beyond_quotas(const Now& now, Actions& out);
  void note_over_quota(Process& process, const Now& now, Actions& out);
  void give_up_naming(Process& process, Record& record, const Now& now, Actions& out);
  core::EpochId next_id(Process& process, const core::TenantId& tenant);
  const Quota& quota(const core::TenantId& tenant) const;
  std::uint32_t in_use(const core::TenantId& tenant) const;

  // registry_slots.cpp
  Process& process(core::ProcessKey key);
  Process* find(core::ProcessKey key);
  Record& add_record(Process& process, const Now& now);
  void enter(Process& process, core::SlotIdentity identity, std::uint64_t start_unix_ns, const Now& now);
  void leave(Process& process, const Now& now);
  void end(Process& process, const Now& now);
  void drain(Record& record, const Now& now);
  void retire(Process& process, Record& record, Actions& out);
  void discard(Process& process, Actions& out);
  void retired(core::SlotIdentity identity);
  void close(Process& process, Record& record);
  void erase(Record& record);
  void forget_idle_processes(const Now& now);

  RegistryConfig config;
  TenantResolver resolver;
  SlotPool pool;
  TenantTable tenants;
  std::map<core::ProcessKey, Process, ByAge> processes;
  std::map<std::uint64_t, Record> records;  ///< by serial
  std::map<core::SlotIdentity, Record*> by_slot;
  std::unordered_map<core::VmUuid, core::ProcessKey> latest;  ///< the youngest process of each VM
  std::uint64_t last_serial = 0;
  std::uint32_t retries = 0;  ///< how many of those who wait may ask again in this call
  RegistryStats counts;       ///< the slots' figures are the pool's
};

}  // namespace kvmscope::tenancy
