// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hostd/core/host_feature.h"
#include "hostd/core/ids.h"
#include "hostd/core/result.h"
#include "hostd/core/series.h"

namespace kvmscope::bpf {

using core::SlotShape;

/// A disk as the kernel tells it apart: see disk_key() for how it is made.
using DiskKey = core::StrongId<struct DiskKeyTag, std::uint64_t>;

/// Key of a disk: a block device (inode 0) or a file on the file system whose device this is. Bijective in
/// the inode for one device; the same function as in the kernel (bpf/abi.h).
DiskKey disk_key(std::uint32_t device_major, std::uint32_t device_minor, std::uint64_t inode);

/// A NIC's tap as the kernel tells it apart: its interface index in the network namespace of that number.
using NicKey = core::StrongId<struct NicKeyTag, std::uint64_t>;
NicKey nic_key(std::uint32_t netns, std::uint32_t ifindex);

/// A disk that a slot has a number for.
struct NumberedDisk {
  DiskKey key;
  bool direct_file = false;  ///< seen as a file under direct I/O: an image, whether or not anybody named it
  bool stacked = false;      ///< seen as a device without requests, whose requests other numbers count again
  bool operator==(const NumberedDisk&) const = default;
};

/// One incarnation: the pair of inner maps (counters, histograms) that a slot's programs write to, mapped
/// read-only. Values only grow as long as it lives. Movable; unmaps and closes with its owner.
class SlotMaps {
 public:
  SlotMaps(SlotMaps&&) noexcept;
  SlotMaps& operator=(SlotMaps&&) noexcept;
  ~SlotMaps();

  core::SlotIdentity identity() const;
  core::Incarnation incarnation() const;
  const SlotShape& shape() const;

  /// Each cell is read as relaxed 64-bit atomic loads straight from the mapping: no system call.
  /// Precondition: the id lies within the shape and the catalogue.
  core::CounterValue counter(core::SeriesId id) const;
  void histogram(core::SeriesId id, core::HistogramValue& out) const;
  /// True if the histogram has counted nothing (one load each of sum and, if that is 0, of the buckets).
  bool histogram_empty(core::SeriesId id) const;

 private:
  friend class Tracer;
  struct Impl;
  explicit SlotMaps(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// A process that took a slot, or that ended.
struct ProcessEvent {
  enum class Type { claimed, exited, no_spare_slot } type = Type::claimed;
  core::ProcessKey process;
  core::SlotIdentity identity;  ///< slot 0 with no_spare_slot
  std::string comm;
  int wait_status = 0;             ///< of exited: as wait() gives it
  std::uint64_t monotonic_ns = 0;  ///< when it happened; 0: not seen happening
};

/// A block request of a VM that failed.
struct IoErrorEvent {
  core::SlotIdentity identity;
  std::uint16_t dev = 0;
  std::uint16_t sub = 0;  ///< into the catalogue's disk errors: direction and error.type
  std::uint64_t sector = 0;
  std::uint32_t bytes = 0;
  std::uint64_t monotonic_ns = 0;
};

/// What the programs count about themselves, summed since load (bpf/abi.h: enum kv_stat).
struct SelfStat {
  std::string_view name;  ///< late, unattributed, carry_full ...
  std::string_view description;
  std::uint64_t value = 0;
};

/// One loaded program, by the kernel's own account. Figures are 0 until run-time statistics were switched on.
struct ProgramInfo {
  std::string name;
  bool attached = false;
  std::string why_not;  ///< why it is not attached (unsupported, not needed on this kernel), else empty
  std::uint64_t run_count = 0;  ///< in windows of enabled statistics
  std::uint64_t run_time_ns = 0;
  std::uint64_t recursion_misses = 0;
  std::uint32_t verified_instructions = 0;
  std::uint32_t jited_bytes = 0;
  std::uint64_t map_bytes = 0;  ///< on the first entry only: memory of all maps that are not a slot's
};

/// How the submitter's identity is found.
enum class IdentityHook {
  automatic,  ///< io_start where this kernel has it
  io_start,   ///< tp_btf/block_io_start (6.5 and later)
  getrq,      ///< tp_btf/block_getrq, found again by the bio: for older kernels
};

/// The kernel side: loads the programs, owns every map, hands out slots.
///
/// Threads: all methods are called on the loop's thread and return at once, except those that take a
/// callback: they hand the waiting for RCU to the tracer's own thread and post the callback to
/// Options::executor.
class Tracer {
 public:
  struct Options {
    boost::asio::any_io_executor executor;
    std::uint32_t max_slots = 4096;
    std::uint32_t max_tenants = 1024;
    std::uint32_t max_cgroups = 65536;
    IdentityHook identity_hook = IdentityHook::automatic;
    /// Base names of QEMU binaries; a trailing '*' matches any ending.
    std::vector<std::string> qemu_names = {"qemu-system-*", "qemu-kvm"};
    std::function<void(const ProcessEvent&)> on_process;  ///< posted to executor's thread
    std::function<void(core::SlotIdentity, std::uint32_t tenant_index, const IoErrorEvent&)> on_io_error;
  };

  /// Loads and attaches. Errors say what is missing and what helps (no BTF, no privilege, verifier's last
  /// lines).
  static core::Result<std::unique_ptr<Tracer>> open(Options options);
  ~Tracer();

  // --- slots
  // -------------------------------------------------------------------------------------------------
  using MapsCallback = std::function<void(core::Result<SlotMaps>)>;
  /// Creates an incarnation, installs it at its slot and puts the slot's {tenant index 0, no disks} in force
  /// for this generation. The slot must be free (never used, or retired). Then the slot may be offered as a
  /// spare.
  void install(core::SlotIdentity identity, core::Incarnation incarnation, SlotShape shape,
               MapsCallback done);
  using ReplaceCallback = std::function<void(core::Result<SlotMaps> fresh)>;
  /// Replaces a slot's inner maps by larger ones of the same generation. The old SlotMaps stay readable and
  /// are final when `done` is called: their owner then drains and drops them.
  void grow(core::SlotIdentity identity, core::Incarnation incarnation, SlotShape shape,
            ReplaceCallback done);
  /// Takes the slot's maps out and invalidates its generation; when `done` is called no program can write to
  /// them any more and work still in flight counts as `late`.
  void retire(core::SlotIdentity identity, std::function<void(core::Result<void>)> done);
  /// Puts an installed slot into the pool that new QEMU processes take from.
  core::Result<void> offer_spare(core::SlotIdentity identity);
  /// Slots in the pool just now.
  std::uint32_t spares() const;
  /// Slot 0: what marked processes did while they held no slot.
  const SlotMaps& host_maps() const;

  // --- identity
  // ----------------------------------------------------------------------------------------------
  /// The process's slot: the one that the kernel already gave it, or a spare taken now. resource_exhausted if
  /// the pool is empty, not_found if the process is gone.
  core::Result<core::SlotIdentity> claim(core::ProcessKey process);
  /// Gives the process (which has a slot) another one from the pool: its next request counts there, requests
  /// in flight still count in the old one. Cgroups and helpers bound to the old slot follow.
  core::Result<core::SlotIdentity> rebind(core::ProcessKey process);
  /// Tasks in these cgroups, and these helper processes, belong to the slot of `process`. Replaces what was
  /// bound before for this process.
  core::Result<void> bind(core::ProcessKey process, std::span<const std::uint64_t> cgroup_ids,
                          std::span<const core::ProcessKey> helpers);
  /// Forgets the process, its cgroups and helpers: its tasks are foreign from now on.
  void unbind(core::ProcessKey process);
  /// Processes that hold a slot in the kernel's table: to catch up after lost events.
  std::vector<std::pair<core::ProcessKey, core::SlotIdentity>> processes() const;

  /// Counts requests whose completion the kernel did not show (docs/adr/0006): to be called before a reading
  /// and before a slot is retired. A system call of some 100 us.
  void settle();
  /// KVM may be loaded later than we are: attaches to its tracepoints once they are there. True if that
  /// happened now.
  core::Result<bool> look_for_kvm();
  /// Counts the CPU time of all VM threads up to now: to be called before a reading, and when a process has
  /// got or changed its slot. About 100 ns for each thread of the host.
  void count_threads();
  /// Requests under way that will count in this slot, and threads that have not quite ended.
  std::size_t in_flight(core::SlotIdentity identity) const;
  /// Whether any thread of the process is more than a zombie.
  bool has_threads(core::ProcessKey process) const;

  // --- disks of a slot
  // ---------------------------------------------------------------------------------------
  /// Numbers these disks of the slot, keeping every number given before. Result: dev of each key, in order.
  core::Result<std::vector<std::uint16_t>> number_disks(core::SlotIdentity identity,
                                                        std::span<const DiskKey> keys);
  /// All keys of the slot numbered so far, by the daemon or at first sight by the kernel; index = dev.
  std::vector<NumberedDisk> disks(core::SlotIdentity identity) const;
  /// A disk of some VM sits on a device without requests (dm, zram): attach the programs for bios, once.
  core::Result<void> need_bio_devices();

  // --- NICs of a slot
  // ----------------------------------------------------------------------------------------
  /// Numbers these NICs of the slot, keeping every number given before; packets at their taps are the slot's,
  /// those of the taps that it had before and are not among them no more, until its threads use one again.
  /// Result: dev of each key, in order.
  core::Result<std::vector<std::uint16_t>> number_nics(core::SlotIdentity identity,
                                                       std::span<const NicKey> keys);
  /// All NICs of the slot numbered so far, by the daemon or at first sight by the kernel; index = dev.
  std::vector<NicKey> nics(core::SlotIdentity identity) const;

  // --- tenants
  // -----------------------------------------------------------------------------------------------
  /// Gives the tenant a ring of its own at this index (1 .. max_tenants-1); 0 is the host's and exists
  /// always.
  core::Result<void> add_tenant(std::uint32_t tenant_index, std::uint32_t ring_bytes);
  void remove_tenant(std::uint32_t tenant_index);
  /// Events of this slot go to this tenant's ring from now on.
  core::Result<void> set_tenant(core::SlotIdentity identity, std::uint32_t tenant_index);
  /// Records lost because this tenant's ring was full, since add_tenant().
  std::uint64_t ring_drops(std::uint32_t tenant_index) const;

  // --- about itself
  // ------------------------------------------------------------------------------------------
  std::vector<SelfStat> self_stats() const;
  std::vector<ProgramInfo> programs() const;
  /// Switches the kernel's run-time statistics on (or off): by duty cycle, for they cost time at every run.
  core::Result<void> enable_run_stats(bool on);
  IdentityHook identity_hook() const;  ///< the one in use, never automatic

 private:
  struct Impl;
  explicit Tracer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Looks, loads nothing that stays: what `kvmscope check` prints about the kernel. Any thread, no privilege
/// needed (without it, features that need it say so).
std::vector<core::HostFeature> probe_host();

}  // namespace kvmscope::bpf
