// SPDX-License-Identifier: Apache-2.0
#include "hostd/self_metrics.h"

#include <algorithm>
#include <utility>

namespace kvmscope::hostd {
namespace {

using core::Instrument;
using core::InstrumentType;

constexpr Instrument kProgramRuns{"kvmscope.program.runs", "{run}",
                                  "Runs of a BPF program while run-time statistics were on",
                                  InstrumentType::counter};
constexpr Instrument kProgramTime{"kvmscope.program.run.time", "s",
                                  "Time in a BPF program while run-time statistics were on",
                                  InstrumentType::counter};
constexpr Instrument kProgramMisses{"kvmscope.program.recursion.misses", "{run}",
                                    "Runs of a BPF program that the kernel left out",
                                    InstrumentType::counter};
constexpr Instrument kProgramAttached{"kvmscope.program.attached", "1", "1 if the program is attached",
                                      InstrumentType::gauge};
constexpr Instrument kProgramInstructions{"kvmscope.program.verified.instructions", "{instruction}",
                                          "Instructions that the verifier walked", InstrumentType::gauge};
constexpr Instrument kProgramJited{"kvmscope.program.jited.size", "By", "Machine code of the program",
                                   InstrumentType::gauge};
constexpr Instrument kMapMemory{"kvmscope.map.memory", "By", "Memory of the BPF maps that belong to no slot",
                                InstrumentType::gauge};
constexpr Instrument kKernelEvents{"kvmscope.kernel.events", "{event}",
                                   "What the programs could not count as they should, by kind",
                                   InstrumentType::counter};
constexpr Instrument kRingDropped{"kvmscope.ring.dropped", "{record}",
                                  "Event records lost because the tenant's ring was full",
                                  InstrumentType::counter};
constexpr Instrument kSlots{"kvmscope.slots", "{slot}", "Slots by state", InstrumentType::gauge};
constexpr Instrument kDiscarded{"kvmscope.processes.discarded", "{process}",
                                "QEMU processes that are no VM of this host", InstrumentType::counter};
constexpr Instrument kUnattributed{"kvmscope.vms.unattributed", "{vm}",
                                   "VM epochs that got no owner before the deadline",
                                   InstrumentType::counter};
constexpr Instrument kClaimsFailed{"kvmscope.claims.failed", "{claim}", "Slots asked for and not given",
                                   InstrumentType::counter};
constexpr Instrument kOverQuota{"kvmscope.vms.over_quota", "{vm}",
                                "VM epochs not traced for their tenant's quota", InstrumentType::counter};
constexpr Instrument kStreamItems{"kvmscope.stream.items", "{item}",
                                  "Points and records by what became of them", InstrumentType::counter};
constexpr Instrument kStreamRequests{"kvmscope.stream.requests", "{request}", "Export attempts by outcome",
                                     InstrumentType::counter};
constexpr Instrument kStreamAuth{"kvmscope.stream.auth.failures", "{request}",
                                 "Attempts refused for credentials", InstrumentType::counter};
constexpr Instrument kStreamQueue{"kvmscope.stream.queue.size", "By", "Batches waiting, in bytes",
                                  InstrumentType::gauge};
constexpr Instrument kStreamLag{"kvmscope.stream.queue.age", "s", "Age of the oldest batch waiting",
                                InstrumentType::gauge};
constexpr Instrument kStreamHealthy{"kvmscope.stream.healthy", "1", "1 if the last attempt succeeded",
                                    InstrumentType::gauge};
constexpr Instrument kDomains{"kvmscope.coverage.domains", "{domain}",
                              "Running domains, those traced, and those not traced by reason",
                              InstrumentType::gauge};
constexpr Instrument kLibvirt{"kvmscope.libvirt.connected", "1", "1 if libvirt answers",
                              InstrumentType::gauge};
constexpr Instrument kQmp{"kvmscope.qmp.connected", "{vm}", "VMs whose QEMU tells its events",
                          InstrumentType::gauge};
constexpr Instrument kClosedWaiting{"kvmscope.epochs.waiting", "{epoch}",
                                    "Ended VM epochs whose last values are not acknowledged yet",
                                    InstrumentType::gauge};
constexpr Instrument kClosedLost{"kvmscope.epochs.lost", "{epoch}",
                                 "Ended VM epochs given up because too many waited", InstrumentType::counter};
constexpr Instrument kEnded{"kvmscope.vms.ended", "{vm}", "VMs whose QEMU was seen to end, by how",
                            InstrumentType::counter};
constexpr Instrument kLogsLost{"kvmscope.logs.lost", "{record}",
                               "Event records dropped on the way to a stream", InstrumentType::counter};
constexpr Instrument kCycleTime{"kvmscope.cycle.time", "s", "CPU time of the last reading and encoding",
                                InstrumentType::gauge};
constexpr Instrument kCpu{"kvmscope.process.cpu.time", "s", "CPU time of the daemon",
                          InstrumentType::counter};
constexpr Instrument kMemory{"kvmscope.process.memory", "By", "Resident memory of the daemon",
                             InstrumentType::gauge};
constexpr Instrument kHeartbeat{"kvmscope.heartbeat", "{interval}",
                                "Export intervals since the daemon started", InstrumentType::counter};
constexpr Instrument kVms{"kvmscope.vms", "{vm}", "VMs of this stream's tenant that are traced on this host",
                          InstrumentType::gauge};

constexpr const Instrument* kAll[] = {&kProgramRuns,
                                      &kProgramTime,
                                      &kProgramMisses,
                                      &kProgramAttached,
                                      &kProgramInstructions,
                                      &kProgramJited,
                                      &kMapMemory,
                                      &kKernelEvents,
                                      &kRingDropped,
                                      &kSlots,
                                      &kDiscarded,
                                      &kUnattributed,
                                      &kClaimsFailed,
                                      &kOverQuota,
                                      &kStreamItems,
                                      &kStreamRequests,
                                      &kStreamAuth,
                                      &kStreamQueue,
                                      &kStreamLag,
                                      &kStreamHealthy,
                                      &kDomains,
                                      &kLibvirt,
                                      &kQmp,
                                      &kClosedWaiting,
                                      &kClosedLost,
                                      &kEnded,
                                      &kLogsLost,
                                      &kCycleTime,
                                      &kCpu,
                                      &kMemory,
                                      &kHeartbeat,
                                      &kVms};

double seconds(std::uint64_t ns) {
  return static_cast<double>(ns) / 1e9;
}

/// Collects points with one start and one time.
class Points {
 public:
  using Labels = std::vector<core::Point::Label>;
  Points(std::uint64_t start_unix_ns, std::uint64_t time_unix_ns)
      : start_(start_unix_ns), time_(time_unix_ns) {}

  void add(const Instrument& instrument, std::uint64_t value, Labels labels = {}) {
    push(instrument, static_cast<std::int64_t>(value), std::move(labels));
  }
  void add_seconds(const Instrument& instrument, std::uint64_t ns, Labels labels = {}) {
    push(instrument, seconds(ns), std::move(labels));
  }

  /// Points of one instrument side by side, as the encoder wants them.
  std::vector<core::Point> take() {
    std::ranges::sort(points_, std::less<>{}, &core::Point::instrument);
    return std::move(points_);
  }

 private:
  template <typename Value>
  void push(const Instrument& instrument, Value value, Labels labels) {
    core::Point& point = points_.emplace_back();
    point.instrument = &instrument;
    point.labels = std::move(labels);
    point.start_unix_ns = instrument.type == InstrumentType::gauge ? 0 : start_;
    point.time_unix_ns = time_;
    point.value = value;
  }

  std::uint64_t start_;
  std::uint64_t time_;
  std::vector<core::Point> points_;
};

void add_programs(const std::vector<bpf::ProgramInfo>& programs, Points& points) {
  for (const bpf::ProgramInfo& program : programs) {
    const Points::Labels labels = {{"program", program.name}};
    points.add(kProgramAttached, program.attached ? 1 : 0, labels);
    if (!program.attached) continue;
    points.add(kProgramRuns, program.run_count, labels);
    points.add_seconds(kProgramTime, program.run_time_ns, labels);
    points.add(kProgramMisses, program.recursion_misses, labels);
    points.add(kProgramInstructions, program.verified_instructions, labels);
    points.add(kProgramJited, program.jited_bytes, labels);
  }
  if (!programs.empty()) points.add(kMapMemory, programs.front().map_bytes);
}

void add_registry(const tenancy::RegistryStats& stats, Points& points) {
  points.add(kSlots, stats.slots_total, {{"state", "total"}});
  points.add(kSlots, stats.slots_in_use, {{"state", "in_use"}});
  points.add(kSlots, stats.slots_spare, {{"state", "spare"}});
  points.add(kSlots, stats.slots_retiring, {{"state", "retiring"}});
  points.add(kDiscarded, stats.probes_discarded, {{"reason", "capability_probe"}});
  points.add(kDiscarded, stats.containers_discarded, {{"reason", "container"}});
  points.add(kUnattributed, stats.unattributed_epochs);
  points.add(kClaimsFailed, stats.claims_failed);
  points.add(kOverQuota, stats.over_quota);
}

void add_stream(const exporters::StreamStats& stats, std::string_view tenant, Points& points) {
  const auto with = [tenant](std::string_view key, std::string_view value) {
    return Points::Labels{{"stream", tenant}, {key, value}};
  };
  points.add(kStreamItems, stats.sent_items, with("outcome", "sent"));
  points.add(kStreamItems, stats.dropped_items_queue, with("outcome", "queue_full"));
  points.add(kStreamItems, stats.dropped_items_permanent, with("outcome", "refused"));
  points.add(kStreamItems, stats.rejected_items, with("outcome", "rejected"));
  points.add(kStreamRequests, stats.sent_requests, with("outcome", "ok"));
  points.add(kStreamRequests, stats.failed_requests, with("outcome", "failed"));
  points.add(kStreamRequests, stats.retried_requests, with("outcome", "retried"));
  points.add(kStreamAuth, stats.auth_failures, {{"stream", tenant}});
  points.add(kStreamQueue, stats.queued_bytes, {{"stream", tenant}});
  points.add_seconds(kStreamLag, stats.oldest_queued_ns, {{"stream", tenant}});
  points.add(kStreamHealthy, stats.healthy ? 1 : 0, {{"stream", tenant}});
}

}  // namespace

std::vector<core::Point> self_points(const SelfReading& reading, std::uint64_t start_unix_ns,
                                     std::uint64_t time_unix_ns, std::deque<std::string>& strings) {
  Points points(start_unix_ns, time_unix_ns);
  add_programs(reading.programs, points);
  for (const bpf::SelfStat& stat : reading.kernel)
    points.add(kKernelEvents, stat.value, {{"event", stat.name}});
  for (const SelfReading::Ring& ring : reading.rings) {
    points.add(kRingDropped, ring.dropped, {{"tenant", ring.tenant}});
  }
  add_registry(reading.registry, points);
  const auto stream_name = [&strings](const std::string& tenant) -> std::string_view {
    return strings.emplace_back(tenant.empty() ? "operator" : "tenant/" + tenant);
  };
  for (const SelfReading::StreamFigures& stream : reading.streams) {
    add_stream(stream.stats, stream_name(stream.tenant), points);
  }
  points.add(kDomains, reading.domains_running, {{"state", "running"}});
  points.add(kDomains, reading.domains_traced, {{"state", "traced"}});
  for (const SelfReading::Untraced& untraced : reading.untraced) {
    points.add(kDomains, untraced.domains, {{"state", "untraced"}, {"reason", untraced.reason}});
  }
  points.add(kLibvirt, reading.libvirt_connected ? 1 : 0);
  if (reading.qmp_connected) points.add(kQmp, *reading.qmp_connected);
  points.add(kClosedWaiting, reading.closed_epochs_waiting);
  points.add(kClosedLost, reading.closed_epochs_lost);
  points.add(kEnded, reading.ends.well, {{"end", "well"}});
  points.add(kEnded, reading.ends.failed, {{"end", "failed"}});
  points.add(kEnded, reading.ends.killed, {{"end", "killed"}});
  for (const SelfReading::LogsLost& lost : reading.logs_lost) {
    points.add(kLogsLost, lost.records, {{"stream", stream_name(lost.tenant)}});
  }
  points.add_seconds(kCycleTime, reading.cycle_ns);
  points.add_seconds(kCpu, reading.cpu_ns);
  points.add(kMemory, reading.resident_bytes);
  points.add(kHeartbeat, reading.cycles);
  return points.take();
}

std::vector<core::Point> heartbeat_points(std::uint64_t cycles, std::uint64_t vms,
                                          std::uint64_t start_unix_ns, std::uint64_t time_unix_ns) {
  Points points(start_unix_ns, time_unix_ns);
  points.add(kHeartbeat, cycles);
  points.add(kVms, vms);
  return points.take();
}

std::span<const core::Instrument* const> self_instruments() {
  return kAll;
}

}  // namespace kvmscope::hostd
