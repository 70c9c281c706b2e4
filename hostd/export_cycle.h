// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "bpf/tracer.h"
#include "exporters/otlp.h"
#include "hostd/config.h"
#include "hostd/core/clock.h"
#include "hostd/qemu_event.h"
#include "hostd/self_metrics.h"
#include "hostd/slot_keeper.h"
#include "hostd/stream_set.h"
#include "hostd/top_tracker.h"
#include "tenancy/registry.h"
#include "virt/qmp_wire.h"

namespace kvmscope::hostd {

/// Reads every epoch, encodes it once, and hands the tenant's and the operator's batches to their streams.
///
/// An epoch that has ended goes on being sent until each of its streams has acknowledged its last values;
/// then its series are closed with NO_RECORDED_VALUE and it is forgotten. So a dead collector costs memory,
/// never a count. Threads: the loop's only.
class ExportCycle {
 public:
  /// `boot_id` makes the heartbeats' instance ids: no tenant knows it.
  ExportCycle(const Config& config, std::string boot_id, tenancy::Registry& registry, SlotKeeper& keeper,
              StreamSet& streams, TopTracker& top, const core::Clock& clock);

  /// One interval: reads and submits. What `read_self` returns is completed with the cycle's own figures and
  /// goes to the operator.
  void run(const std::function<SelfReading()>& read_self);

  /// A failed request of a VM: becomes a log record of its owner, once the owner is known.
  void on_io_error(core::SlotIdentity identity, const bpf::IoErrorEvent& event);
  /// A QEMU was seen to start, or to end: likewise.
  void on_process_start(const bpf::ProcessEvent& event);
  void on_process_end(const bpf::ProcessEvent& event);
  /// A QEMU said something of its VM: likewise.
  void on_qemu_event(core::ProcessKey process, const virt::QmpEvent& event);

 private:
  /// How far an ended epoch's last values have come on one stream.
  enum class Delivery { due, queued, done };
  struct Closed {
    std::uint64_t final_unix_ns = 0;  ///< time of the last values: the same at every repetition
    Delivery tenant = Delivery::due;
    Delivery operators = Delivery::due;
    unsigned refusals = 0;
    bool ended() const { return tenant == Delivery::done && operators == Delivery::done; }
    bool due() const { return tenant == Delivery::due || operators == Delivery::due; }
  };
  struct IoError {
    bpf::IoErrorEvent event;
    std::uint64_t unix_ns = 0;
  };
  /// What happened to one VM since it was last sent. What its guest can cause is bounded, for each VM by
  /// itself: none pushes out another's.
  struct PendingLogs {
    std::vector<core::LogRecord> life;
    std::vector<IoError> io_errors;
    std::vector<QemuEvent> qemu;
    std::uint64_t lost = 0;
  };
  /// How the operator saw a VM while nobody owned it.
  struct Unattributed {
    core::Resource resource;
    std::vector<DeviceLabel> devices;
  };
  /// Batches of one interval by stream, and whose last values each holds.
  struct Outgoing {
    explicit Outgoing(core::TenantId tenant) : batch(std::move(tenant), exporters::Signal::metrics) {}
    exporters::Batch batch;
    std::vector<std::uint64_t> finals;  ///< epochs' serials
    std::uint64_t vms = 0;
  };
  struct Interval {
    std::uint64_t unix_ns = 0;
    std::uint64_t monotonic_ns = 0;
    std::map<core::TenantId, Outgoing> tenants;
    Outgoing operators{kOperator};
    /// Last values that a receiver refused once: apart, so that it cannot refuse the others for their sake.
    std::map<core::TenantId, Outgoing> refused;
    std::vector<std::uint64_t> finished;  ///< epochs' serials
  };

  void add_epoch(const tenancy::Epoch& epoch, Interval& interval);
  void add_closed(const tenancy::Epoch& epoch, Closed& closed, Interval& interval);
  void end_former(const tenancy::Epoch& epoch, const EpochData& data, Interval& interval);
  Closed& closed_state(const tenancy::Epoch& epoch, std::uint64_t unix_ns);
  void add_to(Outgoing& outgoing, const core::Resource& resource, const exporters::EncodedScope& scope,
              exporters::Values values = exporters::Values::repeated);
  Outgoing& tenant_outgoing(const core::TenantId& tenant, Interval& interval);
  void submit(Outgoing outgoing);
  void delivered(const std::vector<std::uint64_t>& finals, bool operators,
                 exporters::Stream::Outcome outcome);
  std::uint64_t unix_time(std::uint64_t monotonic_ns) const;
  void send_logs();
  void forget(std::uint64_t serial);
  void limit_closed();

  core::Resource vm_resource(const tenancy::Epoch& epoch, bool operators) const;
  core::Resource daemon_resource(const core::TenantId& tenant) const;

  const Config& config_;
  const std::string boot_id_;
  tenancy::Registry& registry_;
  SlotKeeper& keeper_;
  StreamSet& streams_;
  TopTracker& top_;
  const core::Clock& clock_;
  const std::uint64_t start_unix_ns_;
  VmReading reading_;
  std::vector<core::Point> points_;
  std::unordered_map<std::uint64_t, Closed> closed_;              ///< by the epoch's serial
  std::unordered_map<std::uint64_t, Unattributed> unattributed_;  ///< by serial, until adopted or forgotten
  std::unordered_map<core::Generation, PendingLogs> logs_;
  std::uint64_t cycles_ = 0;
  std::uint64_t closed_lost_ = 0;
  std::map<core::TenantId, std::uint64_t> logs_lost_;
  VmEnds ends_;
  std::uint64_t last_cycle_ns_ = 0;
};

}  // namespace kvmscope::hostd
