// SPDX-License-Identifier: Apache-2.0
#include "bpf/catalogue.h"

#include <algorithm>
#include <array>

#include "bpf/abi.h"

namespace kvmscope::bpf {
namespace {

using core::Instrument;
using core::InstrumentType;

constexpr Instrument kOperations{
    .name = "kvmscope.vm.disk.storage.operations",
    .unit = "{operation}",
    .description = "Block requests of the VM that the host's storage completed",
    .type = InstrumentType::counter,
};
constexpr Instrument kBytes{
    .name = "kvmscope.vm.disk.storage.io",
    .unit = "By",
    .description = "Bytes that the host's storage transferred for the VM",
    .type = InstrumentType::counter,
};
constexpr Instrument kErrors{
    .name = "kvmscope.vm.disk.storage.errors",
    .unit = "{error}",
    .description = "Block requests of the VM that failed in the host's storage",
    .type = InstrumentType::counter,
};
constexpr Instrument kDuration{
    .name = "kvmscope.vm.disk.storage.duration",
    .unit = "s",
    .description = "Time from a request's first issue to the host's storage until its completion",
    .type = InstrumentType::histogram,
};
constexpr Instrument kQueueDuration{
    .name = "kvmscope.vm.disk.storage.queue.duration",
    .unit = "s",
    .description = "Time from a request's start in the host's block layer until its first issue",
    .type = InstrumentType::histogram,
};

constexpr Instrument kCpuTime{
    .name = "kvmscope.vm.cpu.time",
    .unit = "s",
    .description = "Time that the VM's threads ran on the host's CPUs",
    .type = InstrumentType::counter,
};
constexpr Instrument kSteal{
    .name = "kvmscope.vm.cpu.steal.time",
    .unit = "s",
    .description =
        "Time that the VM's threads were ready to run, and allowed to, and waited for a CPU of the host",
    .type = InstrumentType::counter,
};
constexpr Instrument kThrottled{
    .name = "kvmscope.vm.cpu.throttled.time",
    .unit = "s",
    .description = "Time that a CPU quota kept the vCPU from running",
    .type = InstrumentType::counter,
};
constexpr Instrument kPreemptions{
    .name = "kvmscope.vm.cpu.preemptions",
    .unit = "{preemption}",
    .description = "Times that a vCPU was taken off its CPU though it could have gone on",
    .type = InstrumentType::counter,
};
constexpr Instrument kMigrations{
    .name = "kvmscope.vm.cpu.migrations",
    .unit = "{migration}",
    .description = "Times that a vCPU went on on another CPU of the host",
    .type = InstrumentType::counter,
};
constexpr Instrument kDelayDuration{
    .name = "kvmscope.vm.cpu.delay.duration",
    .unit = "s",
    .description = "Wait of a vCPU for a CPU of the host, before each time that it ran",
    .type = InstrumentType::histogram,
};

constexpr Instrument kExits{
    .name = "kvmscope.vm.cpu.exits",
    .unit = "{exit}",
    .description = "Times that a vCPU left its guest",
    .type = InstrumentType::counter,
};
constexpr Instrument kExitTime{
    .name = "kvmscope.vm.cpu.exit.time",
    .unit = "s",
    .description =
        "Time on a CPU in the host's kernel from an exit to the next entry, or to the return to QEMU",
    .type = InstrumentType::counter,
};
constexpr Instrument kEmulations{
    .name = "kvmscope.vm.cpu.emulations",
    .unit = "{exit}",
    .description = "Exits that KVM handed on to QEMU",
    .type = InstrumentType::counter,
};
constexpr Instrument kEmulationTime{
    .name = "kvmscope.vm.cpu.emulation.time",
    .unit = "s",
    .description = "Time on a CPU from such a return to QEMU to the next entry",
    .type = InstrumentType::counter,
};
constexpr Instrument kHaltTime{
    .name = "kvmscope.vm.cpu.halt.time",
    .unit = "s",
    .description = "Time that a vCPU had nothing to do: blocked, or polling for its next interrupt",
    .type = InstrumentType::counter,
};

constexpr Instrument kPagingFaults{
    .name = "kvmscope.vm.paging.faults",
    .unit = "{fault}",
    .description = "Page faults of the VM's processes that had to wait for storage",
    .type = InstrumentType::counter,
};

constexpr Instrument kPackets{
    .name = "kvmscope.vm.network.packet.count",
    .unit = "{packet}",
    .description = "Packets that the VM took from, or gave to, its tap",
    .type = InstrumentType::counter,
};
constexpr Instrument kNetworkBytes{
    .name = "kvmscope.vm.network.io",
    .unit = "By",
    .description = "Bytes of these packets, with their Ethernet headers",
    .type = InstrumentType::counter,
};
constexpr Instrument kSegments{
    .name = "kvmscope.vm.network.segment.count",
    .unit = "{packet}",
    .description =
        "Packets on a wire that these stand for: those that segmentation offload keeps together "
        "are several",
    .type = InstrumentType::counter,
};
constexpr Instrument kDropped{
    .name = "kvmscope.vm.network.packet.dropped",
    .unit = "{packet}",
    .description = "Packets to or from the VM that the host dropped at its tap",
    .type = InstrumentType::counter,
};
constexpr Instrument kQueueDepth{
    .name = "kvmscope.vm.network.queue.depth",
    .unit = "{packet}",
    .description = "Packets in the tap's queue that the VM has not taken yet",
    .type = InstrumentType::gauge,
};
constexpr Instrument kNetworkQueueDuration{
    .name = "kvmscope.vm.network.queue.duration",
    .unit = "s",
    .description = "Time of a packet in the tap's queue until the VM takes it, of one in eight",
    .type = InstrumentType::histogram,
};

constexpr Instrument kGuestOperations{
    .name = "kvmscope.vm.disk.operations",
    .unit = "{operation}",
    .description = "The guest's own operations on its disk, as QEMU counts them",
    .type = InstrumentType::counter,
};
constexpr Instrument kGuestBytes{
    .name = "kvmscope.vm.disk.io",
    .unit = "By",
    .description = "Bytes of these operations",
    .type = InstrumentType::counter,
};
constexpr Instrument kGuestTime{
    .name = "kvmscope.vm.disk.operation.time",
    .unit = "s",
    .description = "Time that these operations took in QEMU, added up",
    .type = InstrumentType::counter,
};
constexpr Instrument kUnobserved{
    .name = "kvmscope.vm.disk.unobserved.time",
    .unit = "s",
    .description = "Time of the epoch, up to now or to the VM's end, that QEMU's own counts do not cover",
    .type = InstrumentType::gauge,
};

constexpr std::array<std::string_view, KV_OPS> kDirections{"read", "write", "flush", "discard"};
constexpr std::array<std::string_view, KV_ERRORS> kErrorTypes{"io",        "timeout", "nospc",   "medium",
                                                              "transport", "target",  "notsupp", "other"};

/// One label for each sub, and the subs that carry them.
template <std::size_t N>
constexpr auto labels_of(std::string_view key, const std::array<std::string_view, N>& values) {
  std::array<std::array<SubLabel, 1>, N> labels{};
  for (std::size_t sub = 0; sub < N; ++sub) labels[sub][0] = {key, values[sub]};
  return labels;
}
template <std::size_t N, std::size_t Labels>
constexpr auto subs_of(const std::array<std::array<SubLabel, Labels>, N>& labels) {
  std::array<Sub, N> subs{};
  for (std::size_t sub = 0; sub < N; ++sub) subs[sub] = {.labels = labels[sub]};
  return subs;
}

constexpr auto kOpLabels = labels_of("disk.io.direction", kDirections);
constexpr auto kErrorLabels = [] {
  std::array<std::array<SubLabel, 2>, std::size_t{KV_OPS} * KV_ERRORS> labels{};
  for (std::size_t sub = 0; sub < labels.size(); ++sub) {
    labels[sub][0] = {"disk.io.direction", kDirections[sub / KV_ERRORS]};
    labels[sub][1] = {"error.type", kErrorTypes[sub % KV_ERRORS]};
  }
  return labels;
}();

constexpr auto kOps = [] {
  auto subs = subs_of(kOpLabels);
  subs[KV_READ].always = subs[KV_WRITE].always = true;
  return subs;
}();
constexpr auto kErrorSubs = subs_of(kErrorLabels);

constexpr std::array<SubLabel, 1> kVcpuLabel{{{"cpu.thread", "vcpu"}}};
constexpr std::array<Sub, 1> kVcpuThread{{{.labels = kVcpuLabel, .always = true}}};
constexpr std::array<Sub, 1> kPlain{{{.labels = {}, .always = true}}};
constexpr std::array<std::string_view, KV_THREADS> kThreads{"iothread", "vhost", "emulator", "other"};
constexpr auto kThreadLabels = labels_of("cpu.thread", kThreads);
constexpr auto kThreadSubs = [] {
  auto subs = subs_of(kThreadLabels);
  subs[KV_THREAD_EMULATOR].always = true;
  return subs;
}();

constexpr std::array<std::string_view, KV_EXITS> kExitReasons{"exception",
                                                              "interrupt",
                                                              "nmi",
                                                              "interrupt_window",
                                                              "preemption_timer",
                                                              "hlt",
                                                              "pause",
                                                              "mwait",
                                                              "cpuid",
                                                              "rdtsc",
                                                              "invlpg",
                                                              "cr",
                                                              "dr",
                                                              "io",
                                                              "msr_read",
                                                              "msr_write",
                                                              "hypercall",
                                                              "page_fault",
                                                              "ept_misconfig",
                                                              "apic",
                                                              "descriptor",
                                                              "task_switch",
                                                              "wbinvd",
                                                              "xsetbv",
                                                              "rdpmc",
                                                              "nested",
                                                              "smi",
                                                              "shutdown",
                                                              "bus_lock",
                                                              "encrypted",
                                                              "failed",
                                                              "other"};
constexpr std::array<std::string_view, KV_HALTS> kHalts{"blocked", "polled", "polled_in_vain"};
constexpr auto kExitLabels = labels_of("cpu.exit.reason", kExitReasons);
constexpr auto kExitSubs = subs_of(kExitLabels);
constexpr auto kHaltLabels = labels_of("cpu.halt", kHalts);
constexpr auto kHaltSubs = subs_of(kHaltLabels);
constexpr std::array<SubLabel, 1> kMajorLabel{{{"paging.type", "major"}}};
constexpr std::array<Sub, 1> kMajor{{{.labels = kMajorLabel, .always = true}}};
constexpr std::array<std::string_view, KV_DIRECTIONS> kNicDirections{"receive", "transmit"};
constexpr std::array<std::string_view, KV_DROPS> kDropReasons{"ring_full", "filter", "down",
                                                              "qdisc",     "memory", "other"};
constexpr auto kNicLabels = labels_of("network.io.direction", kNicDirections);
constexpr auto kNicSubs = [] {
  auto subs = subs_of(kNicLabels);
  for (Sub& sub : subs) sub.always = true;
  return subs;
}();
constexpr auto kDropLabels = [] {
  std::array<std::array<SubLabel, 2>, std::size_t{KV_DIRECTIONS} * KV_DROPS> labels{};
  for (std::size_t sub = 0; sub < labels.size(); ++sub) {
    labels[sub][0] = {"network.io.direction", kNicDirections[sub / KV_DROPS]};
    labels[sub][1] = {"error.type", kDropReasons[sub % KV_DROPS]};
  }
  return labels;
}();
constexpr auto kDropSubs = subs_of(kDropLabels);
static_assert(KV_NIC_SAMPLED == 8);
constexpr std::array<SubLabel, 1> kSampledLabel{{{"kvmscope.sampling.ratio", "0.125"}}};
constexpr std::array<Sub, 1> kSampled{{{.labels = kSampledLabel}}};

/// Where there is no KVM these do not exist; with it they come with the first exit.
/// Without labels, and not before there is something to tell.
constexpr std::array<Sub, 1> kOnceSeen{{{.labels = {}}}};

constexpr std::array<Kind, KV_KINDS> kKinds{{
    {.id = KV_DISK_STORAGE, .subs = kOps, .count = &kOperations, .sum = &kBytes},
    {.id = KV_DISK_ERRORS, .subs = kErrorSubs, .count = &kErrors},
    {.id = KV_DISK_STORAGE_DURATION, .histogram = true, .subs = kOps, .count = &kDuration},
    {.id = KV_DISK_QUEUE_DURATION, .histogram = true, .subs = kOps, .count = &kQueueDuration},
    {.id = KV_VCPU_TIME, .dev_space = DevSpace::vcpu, .subs = kVcpuThread, .count = &kCpuTime},
    {.id = KV_VCPU_STEAL,
     .dev_space = DevSpace::vcpu,
     .subs = kVcpuThread,
     .count = &kSteal,
     .sum = &kThrottled},
    {.id = KV_THREAD_TIME,
     .dev_space = DevSpace::vm,
     .subs = kThreadSubs,
     .count = &kCpuTime,
     .sum = &kSteal},
    {.id = KV_VCPU_SWITCHES,
     .dev_space = DevSpace::vcpu,
     .subs = kPlain,
     .count = &kPreemptions,
     .sum = &kMigrations},
    {.id = KV_VCPU_DELAY,
     .histogram = true,
     .dev_space = DevSpace::vcpu,
     .subs = kPlain,
     .count = &kDelayDuration},
    {.id = KV_VCPU_EXITS,
     .dev_space = DevSpace::vcpu,
     .subs = kExitSubs,
     .count = &kExits,
     .sum = &kExitTime},
    {.id = KV_VCPU_EMULATION,
     .dev_space = DevSpace::vcpu,
     .subs = kOnceSeen,
     .count = &kEmulations,
     .sum = &kEmulationTime},
    {.id = KV_VCPU_HALT, .dev_space = DevSpace::vcpu, .subs = kHaltSubs, .sum = &kHaltTime},
    {.id = KV_PAGING, .dev_space = DevSpace::vm, .subs = kMajor, .count = &kPagingFaults},
    {.id = KV_NIC_PACKETS,
     .dev_space = DevSpace::nic,
     .subs = kNicSubs,
     .count = &kPackets,
     .sum = &kNetworkBytes},
    {.id = KV_NIC_SEGMENTS, .dev_space = DevSpace::nic, .subs = kNicSubs, .count = &kSegments},
    {.id = KV_NIC_DROPS, .dev_space = DevSpace::nic, .subs = kDropSubs, .count = &kDropped},
    {.id = KV_NIC_QUEUE, .dev_space = DevSpace::nic, .subs = kOnceSeen},
    {.id = KV_NIC_DEPTH, .dev_space = DevSpace::nic, .subs = kPlain, .count = &kQueueDepth},
    {.id = KV_NIC_QUEUE_DURATION,
     .histogram = true,
     .dev_space = DevSpace::nic,
     .subs = kSampled,
     .count = &kNetworkQueueDuration},
    {.id = KV_GUEST_DISK,
     .dev_space = DevSpace::guest_disk,
     .subs = kOps,
     .count = &kGuestOperations,
     .sum = &kGuestBytes},
    {.id = KV_GUEST_DISK_TIME, .dev_space = DevSpace::guest_disk, .subs = kOps, .count = &kGuestTime},
    {.id = KV_GUEST_UNOBSERVED, .dev_space = DevSpace::vm, .subs = kOnceSeen, .count = &kUnobserved},
}};

}  // namespace

std::uint16_t rows_of(const core::SlotShape& shape, DevSpace space) {
  switch (space) {
    case DevSpace::vm:
      return 1;
    case DevSpace::disk:
      return std::max<std::uint16_t>(shape.disks, 1);
    case DevSpace::vcpu:
      return std::max<std::uint16_t>(shape.vcpus, 1);
    case DevSpace::nic:
      return std::max<std::uint16_t>(shape.nics, 1);
    case DevSpace::guest_disk:
      return 0;
  }
  return 1;
}

std::span<const Kind> catalogue() {
  return kKinds;
}

}  // namespace kvmscope::bpf
