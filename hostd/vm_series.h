// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bpf/catalogue.h"
#include "bpf/tracer.h"
#include "hostd/core/metric.h"
#include "hostd/core/vm.h"
#include "tenancy/ledger.h"
#include "virt/block_stats.h"
#include "virt/cpu_stat.h"

namespace kvmscope::hostd {

/// Stands for every device beyond a slot's rows, whatever its number: rows change when a slot grows, this
/// does not.
inline constexpr std::uint16_t kOtherDevice = 0xffff;

/// The kernel's keys of a disk, one for each of its images; none for one that no host block request will ever
/// name. Pure.
std::vector<bpf::DiskKey> keys_of(const core::Disk& disk);

/// What a VM's devices have been called. A key keeps its first name as long as the VM lives, in the domain or
/// no more: what it counted must stay in the series where it was reported.
using DeviceNames = std::map<bpf::DiskKey, std::string>;

/// What a VM's NICs have been called, likewise: libvirt's alias, which the next one that is plugged may get,
/// and the guest's address.
struct NicName {
  std::string alias;  ///< empty: the domain may name it yet
  std::string mac;
  std::uint64_t seen_ns = 0;  ///< monotonic: when it was numbered without a name
};
using NicNames = std::map<bpf::NicKey, NicName>;

/// So long a tap of a known VM may be without a name (libvirt tells of one that is plugged after its first
/// packets) before it is `unresolved`.
inline constexpr std::uint64_t kNicNamedWithinNs = 60'000'000'000;

/// A label (disk vda, unresolved, other; vCPU 0) and the slot's device numbers that it covers.
struct DeviceLabel {
  bpf::DevSpace space = bpf::DevSpace::disk;
  std::string name;
  std::string mac;  ///< of a NIC that the domain named
  std::vector<std::uint16_t> devs;
  bool of_domain = false;  ///< named by the domain: its `always` series exist from the start
};

/// Which of a slot's numbered devices are what. Without facts (the VM was never named) all of them are
/// `unresolved`. Numbers that are neither a disk of the domain nor on a device that holds one (a device below
/// a stacked one, say) get no label: what they counted is counted at the disk itself, or is no disk's. A file
/// under direct I/O is some disk's: the domain may name it yet, and at its `last_chance` (the slot is
/// drained, the daemon stops) it is `unresolved`. Adds to `names` what the facts name for the first time.
std::vector<DeviceLabel> label_disks(const core::VmFacts* facts, std::span<const bpf::NumberedDisk> devices,
                                     bool last_chance, DeviceNames& names);

/// Which of a slot's numbered NICs are what: as of disks, but a tap is always the VM's: one that the domain
/// has not named in time is `unresolved`. A NIC without a tap gets no label, nor one beyond those that are
/// numbered apart.
std::vector<DeviceLabel> label_nics(const core::VmFacts* facts, std::span<const bpf::NicKey> nics,
                                    std::uint64_t now_ns, bool last_chance, NicNames& names);

/// The guest's own operations, disk by disk, as far as one epoch is concerned. QEMU counts from its start;
/// the epoch may have begun later.
class GuestDisks {
 public:
  /// Adds what has been done since the last reading. `from_zero`: the epoch has all that QEMU ever did;
  /// otherwise its first reading is where it begins. What a reading does not have was unplugged: if it comes
  /// back it is another one.
  void read(const virt::BlockReading& reading, bool from_zero, std::uint64_t epoch_start_unix_ns,
            tenancy::EpochTotals& totals);
  std::vector<DeviceLabel> labels() const;
  /// How much of the epoch's time until then is in no reading.
  std::uint64_t unobserved_ns(std::uint64_t epoch_start_unix_ns, std::uint64_t until_unix_ns) const;

 private:
  struct Disk {
    std::string target;
    std::optional<virt::GuestDisk> last;  ///< as QEMU had it; empty: gone
  };
  void add(std::uint16_t dev, std::uint16_t op, const virt::GuestOperations& now,
           const virt::GuestOperations& before, tenancy::EpochTotals& totals) const;

  std::vector<Disk> disks_;  ///< index = dev
  std::uint64_t since_unix_ns_ = 0;
  std::uint64_t until_unix_ns_ = 0;  ///< 0: never read
};

/// How many packets wait in each NIC's queue, into the totals: handed to the tap, and neither refused nor
/// taken; 0 once `facts` have the NIC no more. What was there before anybody looked shows as taken without
/// having been handed over, and is corrected by that.
void add_queue_depth(const bpf::SlotMaps& maps, std::span<const bpf::NicKey> nics, const core::VmFacts* facts,
                     tenancy::EpochTotals& totals);

/// The vCPUs, named by their numbers: those plugged in exist from the start, the others once they have run.
/// `rows`: of the slot's maps, for a VM without facts.
std::vector<DeviceLabel> label_vcpus(const core::VmFacts* facts, std::uint16_t rows);

/// What is split by no device at all.
DeviceLabel vm_label();

/// What quotas took from one vCPU since `before` (when its counting began): by its own quota, and its share
/// of those on the whole VM, by how long each thread waited.
std::uint64_t throttled_ns(const virt::CpuThrottle& now, const std::optional<virt::CpuThrottle>& before,
                           std::size_t vcpu, std::uint64_t waited_ns, std::uint64_t all_waited_ns);

/// Steal (count) and throttled time (sum) of a vCPU that waited so long for a CPU. The kernel adds to both at
/// different moments: neither falls below what was `shown` before.
core::CounterValue steal_of(std::uint64_t waited_ns, std::uint64_t throttled_ns,
                            const core::CounterValue& shown);

/// Every vCPU's steal into the totals.
void add_steal(const bpf::SlotMaps& maps, const virt::CpuThrottle& throttle,
               const std::optional<virt::CpuThrottle>& before, tenancy::EpochTotals& totals);

/// Adds an ended incarnation's final values to its epoch's totals.
void fold_incarnation(const bpf::SlotMaps& maps, tenancy::EpochTotals& totals);

/// Every exported value of one epoch at one moment: live incarnation plus closed ones, by device and sub.
/// Reused from VM to VM so that a cycle allocates once.
class VmReading {
 public:
  struct Row {
    const bpf::Kind* kind;
    std::uint16_t sub;
    const DeviceLabel* device;
    core::CounterValue counter;             ///< counters
    const core::HistogramValue* histogram;  ///< histograms; nullptr for counters
  };

  /// Reads; `maps` is null once the slot was drained. The labels must outlive the reading.
  void read(const bpf::SlotMaps* maps, const tenancy::EpochTotals& totals,
            std::span<const DeviceLabel> devices);

  std::span<const Row> rows() const { return rows_; }

  /// The rows as points, those of one instrument next to each other. Views the reading: valid until the next
  /// read().
  void points(std::uint64_t start_unix_ns, std::uint64_t time_unix_ns, std::vector<core::Point>& out) const;
  /// The same series, each closed with NO_RECORDED_VALUE.
  void end_points(std::uint64_t start_unix_ns, std::uint64_t time_unix_ns,
                  std::vector<core::Point>& out) const;

 private:
  void append(const core::Instrument* instrument, const Row& row, bool sum, bool ended,
              std::uint64_t start_unix_ns, std::uint64_t time_unix_ns, std::vector<core::Point>& out) const;
  void walk(bool ended, std::uint64_t start_unix_ns, std::uint64_t time_unix_ns,
            std::vector<core::Point>& out) const;
  core::HistogramValue* next_histogram();

  std::vector<Row> rows_;
  std::vector<std::size_t> first_of_kind_;       ///< into rows_; one more than there are kinds
  std::deque<core::HistogramValue> histograms_;  // deque: rows point into it while it grows
  std::size_t used_histograms_ = 0;
};

}  // namespace kvmscope::hostd
