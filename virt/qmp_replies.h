// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "hostd/core/result.h"

/// Typed readings of what QMP commands return (QEMU's qapi/*.json; 7.2, and what later ones keep). Pure.
/// Members that are not known are passed over. corrupt: a mandatory member is missing, or one has another
/// type.
namespace kvmscope::virt {

/// bins has one element more than boundaries_ns: [0, first), [first, second) ... [last, infinity).
struct LatencyHistogram {
  std::vector<std::uint64_t> boundaries_ns;  ///< above 0, ascending
  std::vector<std::uint64_t> bins;           ///< requests since the boundaries were set
  bool operator==(const LatencyHistogram&) const = default;
};

/// One kind of request since QEMU's start. Empty: this QEMU does not count it for this kind.
struct BlockOperations {
  std::optional<std::uint64_t> operations;  ///< done; those that failed are not among them
  std::optional<std::uint64_t> bytes;       ///< of these; a flush has none
  /// From QEMU's taking a request to its end. With those that failed, unless the device has
  /// account-failed=off.
  std::optional<std::uint64_t> total_time_ns;
  std::optional<std::uint64_t> failed;
  std::optional<std::uint64_t> merged;  ///< requests that QEMU made part of another one; a flush has none
  /// Failed ones too. Only since block-latency-histogram-set; never for unmap.
  std::optional<LatencyHistogram> latency;
  bool operator==(const BlockOperations&) const = default;
};

/// What the guest asked of one device (a BlockBackend; not of the images below it).
struct BlockDeviceStats {
  /// The device's id, or its QOM path if it has none: virtio-blk's is
  /// "/machine/peripheral/ID/virtio-backend". What block-latency-histogram-set takes. Empty: no device uses
  /// it.
  std::string qdev;
  std::string node_name;  ///< of the top image; empty: no medium
  std::string device;     ///< the backend's name with -drive; empty with -blockdev
  BlockOperations read;
  BlockOperations write;
  BlockOperations flush;
  BlockOperations unmap;
  bool operator==(const BlockDeviceStats&) const = default;
};

struct VcpuThread {
  std::uint32_t index = 0;
  /// As QEMU's own gettid() tells it: in its pid namespace. TCG may run all vCPUs in one thread.
  std::uint32_t thread_id = 0;
  bool operator==(const VcpuThread&) const = default;
};

struct IoThread {
  std::string id;
  std::uint32_t thread_id = 0;  ///< as VcpuThread's
  bool operator==(const IoThread&) const = default;
};

struct RunStatus {
  bool running = false;  ///< the vCPUs are
  std::string status;    ///< "running", "paused", "prelaunch", "io-error", ...
  bool operator==(const RunStatus&) const = default;
};

/// Of query-blockstats.
core::Result<std::vector<BlockDeviceStats>> read_blockstats(const nlohmann::json& returned);
/// Of query-cpus-fast. Empty with -machine none.
core::Result<std::vector<VcpuThread>> read_cpus_fast(const nlohmann::json& returned);
/// Of query-iothreads.
core::Result<std::vector<IoThread>> read_iothreads(const nlohmann::json& returned);
/// Of query-status.
core::Result<RunStatus> read_status(const nlohmann::json& returned);

}  // namespace kvmscope::virt
