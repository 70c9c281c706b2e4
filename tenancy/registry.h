// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "hostd/core/ids.h"
#include "hostd/core/result.h"
#include "hostd/core/series.h"
#include "hostd/core/vm.h"

namespace kvmscope::tenancy {

/// A static rule: the first that matches names the tenant. Exactly one of uuid and name_pattern is set.
struct TenantRule {
  std::string uuid;
  std::string name_pattern;  ///< shell wildcards (* ? [..]) over libvirt's domain name
  core::TenantId tenant;
};

/// Where a VM's owner may come from, tried in the configured order; the first that says something wins.
enum class TenancySource { nova, own_metadata, rules };

struct Quota {
  /// The programs number no more devices apart (KV_MAX_DISKS, KV_MAX_NICS in bpf/abi.h): in maps with more
  /// rows, what they count as "other" would not be in the last one.
  static constexpr std::uint16_t kMostDisks = 32;
  static constexpr std::uint16_t kMostNics = 16;

  std::uint32_t slots = 512;            ///< VMs of one tenant that are traced at a time
  std::uint16_t disks_per_vm = 16;      ///< rows; disks beyond share the last one, "other"
  std::uint16_t vcpus_per_vm = 64;      ///< rows, as of disks
  std::uint16_t nics_per_vm = 8;        ///< rows, as of disks
  std::uint32_t ring_bytes = 1U << 16;  ///< power of two, at least a page
  bool operator==(const Quota&) const = default;
};

struct RegistryConfig {
  std::string boot_id;
  std::string host_id;
  std::uint32_t max_slots = 4096;
  std::uint32_t max_tenants = 1024;
  std::uint32_t spare_slots = 16;
  core::SlotShape spare_shape;  ///< of a spare slot's maps
  /// A claimed process that libvirt has not named for so long is the operator's `unattributed`.
  std::chrono::nanoseconds unattributed_after{std::chrono::seconds(60)};
  /// How long a slot stays installed after its process ended or changed hands, for requests in flight.
  std::chrono::nanoseconds linger{std::chrono::seconds(2)};
  std::vector<TenancySource> sources = {TenancySource::nova, TenancySource::own_metadata,
                                        TenancySource::rules};
  std::vector<TenantRule> rules;
  Quota default_quota;
  std::map<core::TenantId, Quota> tenant_quotas;
};

/// Life of one VM epoch in one owner's hands.
enum class EpochState {
  unnamed,       ///< counting in a slot; libvirt has not said whose it is
  attributed,    ///< owner known
  unattributed,  ///< the deadline passed, or no source names an owner: the operator's, may still be
                 ///< attributed
  over_quota,    ///< owner known, but the tenant's slots are used up: not traced
  draining,      ///< the process ended or the owner changed: in flight work still lands here
  closed,        ///< drained into the totals; kept until every stream has its last values
};

struct Epoch {
  /// The registry's own number, never reused: the one key that neither naming nor retirement changes.
  std::uint64_t serial = 0;
  core::EpochId id;  ///< empty while unnamed or over quota (opaque, deterministic, see epoch_id())
  /// As what the operator saw it while it was unattributed; that series ends, its counts are all in `id`'s.
  core::EpochId former_id;
  EpochState state = EpochState::unnamed;
  core::TenantId tenant;           ///< empty unless an owner is known
  std::uint32_t tenant_index = 0;  ///< in the kernel's ring table; 0 until attributed
  /// Where it counts, or last counted while draining (the slot may be retired then); slot 0: over quota,
  /// closed.
  core::SlotIdentity slot;
  core::ProcessKey process;
  std::optional<core::VmFacts> facts;  ///< absent while unnamed
  std::string tenancy_source;          ///< nova, own_metadata, rule; empty without an owner
  bool owner_vanished = false;         ///< no source names the owner any more; it stays
  std::string comm;
  /// Its process had none before: all that the process ever did is this one's, if it began early enough.
  bool first_of_process = false;
  /// When counting began: max(QEMU start, slot given), wall clock. Start time of its cumulative series.
  std::uint64_t start_unix_ns = 0;
  std::uint64_t end_unix_ns = 0;  ///< 0 while it runs
};

/// What a claimed process looks like in /proc, as far as it was still there to be looked at.
struct ProcessHint {
  core::VmUuid uuid;
  std::string guest_name;
  bool capability_probe = false;
  bool in_container = false;
};

// What the registry wants done to the kernel side. The caller carries each out and reports back where it says
// so. Actions of all calls form one queue: what an answer returns is appended, never carried out before what
// was returned earlier.
struct InstallSpare {
  core::SlotIdentity identity;
  core::SlotShape shape;
};  ///< then on_installed() or on_install_failed()
struct Claim {
  core::ProcessKey process;
};  ///< then on_claimed() or on_claim_failed()
struct Rebind {
  core::ProcessKey process;
};  ///< then on_rebound() or on_claim_failed()
struct BindTasks {
  core::ProcessKey process;
  std::vector<std::uint64_t> cgroup_ids;
  std::vector<core::ProcessKey> helpers;
};
struct NumberDisks {
  core::SlotIdentity identity;
  std::vector<core::Disk> disks;
  std::uint16_t max_rows;  ///< the tenant's quota: what is numbered beyond counts in the last row
};
struct NumberNics {
  core::SlotIdentity identity;
  std::vector<core::Nic> nics;  ///< those with a tap
  std::uint16_t max_rows;       ///< as of disks
};
struct Grow {
  core::SlotIdentity identity;
  core::SlotShape shape;
};  ///< then on_grown()
struct AddTenant {
  std::uint32_t index;
  core::TenantId tenant;
  std::uint32_t ring_bytes;
};
struct RemoveTenant {
  std::uint32_t index;
};
struct SetTenant {
  core::SlotIdentity identity;
  std::uint32_t index;
};
struct Unbind {
  core::ProcessKey process;
};  ///< the process is foreign from now on
struct Retire {
  core::SlotIdentity identity;
};  ///< then on_retired()
/// Nothing of this slot is anybody's (a capability probe, a QEMU in a container): Unbind and Retire it at
/// once and drop what it counted, then on_retired(). No epoch answers to the slot any more.
struct Discard {
  core::SlotIdentity identity;
  core::ProcessKey process;
};
using Action = std::variant<InstallSpare, Claim, Rebind, BindTasks, NumberDisks, NumberNics, Grow, AddTenant,
                            RemoveTenant, SetTenant, Unbind, Retire, Discard>;
using Actions = std::vector<Action>;

/// Point in time as the registry needs it.
struct Now {
  std::uint64_t monotonic_ns = 0;
  std::uint64_t unix_ns = 0;
  std::uint64_t boottime_ns = 0;
};

/// Counts for self-metrics and coverage.
struct RegistryStats {
  std::uint32_t slots_total = 0;  ///< without the host's
  std::uint32_t slots_in_use = 0;
  std::uint32_t slots_spare = 0;
  std::uint32_t slots_retiring = 0;
  std::uint64_t probes_discarded = 0;  ///< ever, as all below
  std::uint64_t containers_discarded = 0;
  std::uint64_t unattributed_epochs = 0;
  std::uint64_t claims_failed = 0;
  std::uint64_t over_quota = 0;  ///< times a VM was not traced for its tenant's quota
};

/// Who owns what: VM epochs, slots, tenants, quotas. Pure logic: no clock, no I/O, no threads. Events go in,
/// actions come out; the caller carries them out in order. Wrong order, repeats and contradictions of events
/// (libvirt after a restart, lost ring records, a process that is gone already) lead to right or
/// unattributed, never to wrong.
class Registry {
 public:
  explicit Registry(RegistryConfig config);
  ~Registry();

  /// First actions: the pool of spare slots.
  Actions start(const Now& now);

  // --- from the kernel side
  Actions on_installed(core::SlotIdentity identity, const Now& now);
  Actions on_install_failed(core::SlotIdentity identity, const Now& now);
  Actions on_claimed(core::ProcessKey process, core::SlotIdentity identity, const std::string& comm,
                     const std::optional<ProcessHint>& hint, const Now& now);
  Actions on_claim_failed(core::ProcessKey process, const core::Error& error, const Now& now);
  Actions on_rebound(core::ProcessKey process, core::SlotIdentity identity, const Now& now);
  Actions on_grown(core::SlotIdentity identity, bool ok, const Now& now);
  Actions on_retired(core::SlotIdentity identity, const Now& now);
  Actions on_process_exit(core::ProcessKey process, const Now& now);

  // --- from libvirt
  Actions on_vm(const core::VmFacts& facts, const Now& now);
  Actions on_vm_gone(const core::VmUuid& uuid, core::ProcessKey process, const Now& now);

  // --- from the clock, the configuration, the streams
  Actions tick(const Now& now);
  /// Takes effect at once, but for what is fixed when the kernel side is set up (boot_id, max_slots,
  /// max_tenants) and a tenant's ring_bytes, which hold from its ring's next making.
  Actions reconfigure(RegistryConfig config, const Now& now);
  /// Ahead of time what the deadline would do: who has no owner yet is `unattributed`.
  Actions close_naming(const Now& now);
  /// The streams have the closed epoch's last values: it is forgotten. Any other epoch stays.
  void forget(std::uint64_t serial);

  // --- queries; pointers hold until the next non-const call
  std::vector<const Epoch*> epochs() const;
  const Epoch* by_slot(core::SlotIdentity identity) const;
  /// The epoch that the process's work counts in, or did last; over quota: the one that says so.
  const Epoch* by_process(core::ProcessKey process) const;
  const Epoch* by_serial(std::uint64_t serial) const;
  RegistryStats stats() const;
  /// Tenants with at least one epoch that is not forgotten, by index.
  std::map<std::uint32_t, core::TenantId> tenants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// service.instance.id: hex of a SHA-256 prefix over boot id, VM UUID, QEMU start and owner; the same whoever
/// computes it, and tells a tenant nothing about the host. `nth` counts the process's earlier epochs in this
/// owner's hands.
core::EpochId epoch_id(const std::string& boot_id, const core::VmUuid& uuid, core::ProcessKey process,
                       const core::TenantId& tenant, std::uint32_t nth = 0);

}  // namespace kvmscope::tenancy
