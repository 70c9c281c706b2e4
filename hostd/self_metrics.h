// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bpf/tracer.h"
#include "exporters/stream.h"
#include "hostd/core/metric.h"
#include "hostd/views.h"
#include "tenancy/registry.h"

namespace kvmscope::hostd {

/// QEMUs of VMs that were seen to end, by how.
struct VmEnds {
  std::uint64_t well = 0;    ///< exit code 0
  std::uint64_t failed = 0;  ///< another one
  std::uint64_t killed = 0;  ///< by a signal
};

/// All that the daemon says about itself in one interval.
struct SelfReading {
  std::vector<bpf::ProgramInfo> programs;
  std::vector<bpf::SelfStat> kernel;
  struct Ring {
    std::string tenant;
    std::uint64_t dropped = 0;
  };
  std::vector<Ring> rings;
  tenancy::RegistryStats registry;
  struct StreamFigures {
    std::string tenant;  ///< empty: the operator's own
    exporters::StreamStats stats;
  };
  std::vector<StreamFigures> streams;
  struct Untraced {
    std::string reason;
    std::uint64_t domains = 0;
  };
  std::uint64_t domains_running = 0;
  std::uint64_t domains_traced = 0;
  std::vector<Untraced> untraced;
  bool libvirt_connected = false;
  std::optional<std::uint64_t> qmp_connected;  ///< VMs whose QEMU tells its events; empty: not asked for
  std::uint64_t closed_epochs_waiting = 0;     ///< their last values are not acknowledged by every stream yet
  std::uint64_t closed_epochs_lost = 0;        ///< given up because too many waited
  VmEnds ends;
  struct LogsLost {
    std::string tenant;  ///< empty: the operator's
    std::uint64_t records = 0;
  };
  std::vector<LogsLost> logs_lost;  ///< event records dropped between ring and stream
  std::uint64_t cycles = 0;
  std::uint64_t cycle_ns = 0;  ///< CPU time of the last reading and encoding
  std::uint64_t cpu_ns = 0;    ///< of the process
  std::uint64_t resident_bytes = 0;
};

/// The operator's points about the daemon. Strings live in `strings`; both must outlive the encoding.
std::vector<core::Point> self_points(const SelfReading& reading, std::uint64_t start_unix_ns,
                                     std::uint64_t time_unix_ns, std::deque<std::string>& strings);

/// What each tenant's stream carries about itself: that it lives, and how many of the tenant's VMs are traced
/// here.
std::vector<core::Point> heartbeat_points(std::uint64_t cycles, std::uint64_t vms,
                                          std::uint64_t start_unix_ns, std::uint64_t time_unix_ns);

/// Every instrument of self_points() and heartbeat_points(): docs/metrics.md is checked against it.
std::span<const core::Instrument* const> self_instruments();

}  // namespace kvmscope::hostd
