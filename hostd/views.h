// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "hostd/core/result.h"

namespace kvmscope::hostd {

// What the control socket tells. Field names are the names in `kvmscope ... --json`: renaming one breaks
// scripts. A value that is not known is null, never 0.

/// One disk of a VM and how the host sees it.
struct DiskView {
  std::string target;
  std::string source;
  std::string dev;      ///< the VM's own number of it, "other" beyond the quota, empty if it is not traced
  std::string backing;  ///< block_device, file, invisible
  std::string reason;   ///< why it is not traced; empty if it is
  bool operator==(const DiskView&) const = default;
};

/// One NIC of a VM.
struct NicView {
  std::string name;  ///< libvirt's alias
  std::string mac;
  std::string tap;
  std::string dev;     ///< as of disks
  std::string reason;  ///< why its packets are not seen; empty if they are
  bool operator==(const NicView&) const = default;
};

/// One VM epoch in one owner's hands.
struct VmView {
  std::string uuid;
  std::string name;
  std::optional<std::int32_t> domain_id;
  std::string tenant;       ///< empty: nobody's
  std::string tenant_name;  ///< nova's project name; empty if there is none
  std::string tenancy_source;
  std::string state;
  std::uint32_t pid = 0;
  std::uint32_t slot = 0;  ///< 0: holds none
  std::uint32_t generation = 0;
  std::uint64_t started_unix_ns = 0;
  std::string epoch_id;
  std::vector<DiskView> disks;
  std::vector<NicView> nics;
  std::string coverage_reason;  ///< why it is not (fully) traced; empty if it is
  bool operator==(const VmView&) const = default;
};

/// One tenant and its stream.
struct TenantView {
  std::string id;
  std::string name;
  std::uint32_t index = 0;  ///< in the kernel's table of rings; 0 is the host (the operator)
  std::uint32_t vms = 0;
  std::string exporter;     ///< file, otlp_grpc, none
  std::string destination;  ///< endpoint or path
  bool healthy = true;
  bool waiting_for_credentials = false;
  std::string last_error;
  std::uint64_t sent_items = 0;
  std::uint64_t sent_requests = 0;
  std::uint64_t failed_requests = 0;
  std::uint64_t retried_requests = 0;
  std::uint64_t dropped_items = 0;   ///< by a full queue, or refused for good
  std::uint64_t rejected_items = 0;  ///< by partial success
  std::uint64_t auth_failures = 0;
  std::uint64_t ring_drops = 0;  ///< events lost in the kernel
  std::uint64_t queued_batches = 0;
  std::uint64_t queued_bytes = 0;
  std::uint64_t oldest_queued_ns = 0;
  bool operator==(const TenantView&) const = default;
};

/// One disk and direction of one VM in the last interval.
struct TopRow {
  std::string vm;
  std::string uuid;
  std::string tenant;
  std::string tenant_name;
  std::string disk;
  std::string direction;  ///< read, write, flush, discard
  double operations_per_s = 0;
  double bytes_per_s = 0;
  std::optional<std::uint64_t> p50_ns;  ///< host storage, issue to complete
  std::optional<std::uint64_t> p95_ns;
  std::optional<std::uint64_t> p99_ns;
  std::optional<std::uint64_t> queue_p99_ns;  ///< start to issue
  std::uint64_t errors = 0;
  double interval_s = 0;  ///< what the rates are over
  bool operator==(const TopRow&) const = default;
};

/// One vCPU, or one class of a VM's other threads, in the last interval.
struct CpuRow {
  std::string vm;
  std::string uuid;
  std::string tenant;
  std::string tenant_name;
  std::string thread;  ///< "vcpu 0", iothread, vhost, emulator, other
  double cpu = 0;      ///< CPUs: 1 is all of one
  double steal = 0;
  double throttled = 0;
  std::optional<std::uint64_t> delay_p99_ns;  ///< vCPUs: wait before each time on a CPU
  std::optional<std::uint64_t> exits_per_s;   ///< vCPUs under KVM
  double interval_s = 0;
  bool operator==(const CpuRow&) const = default;
};

/// One NIC of one VM in the last interval.
struct NicRow {
  std::string vm;
  std::string uuid;
  std::string tenant;
  std::string tenant_name;
  std::string nic;
  double received_per_s = 0;  ///< packets, as all three but the bytes
  double received_bytes_per_s = 0;
  double sent_per_s = 0;
  double sent_bytes_per_s = 0;
  std::uint64_t dropped = 0;                 ///< in both directions
  std::uint64_t waiting = 0;                 ///< in the tap's queue
  std::optional<std::uint64_t> wait_p99_ns;  ///< there, of a sample
  double interval_s = 0;
  bool operator==(const NicRow&) const = default;
};

/// One reading of all disks, threads and NICs.
struct TopView {
  std::uint64_t time_unix_ns = 0;  ///< 0: there was no reading yet
  std::vector<TopRow> rows;
  std::vector<CpuRow> cpus;
  std::vector<NicRow> nics;
  bool operator==(const TopView&) const = default;
};

/// One thing about this host.
struct CheckLine {
  std::string name;
  bool ok = false;
  std::string detail;
  std::string effect;  ///< what is degraded because of it; empty if nothing is
  bool operator==(const CheckLine&) const = default;
};

nlohmann::json to_json(const std::vector<VmView>& vms);
nlohmann::json to_json(const std::vector<TenantView>& tenants);
nlohmann::json to_json(const TopView& top);
nlohmann::json to_json(const std::vector<CheckLine>& lines);

// The way back. corrupt: it is not what to_json() makes. Unknown fields are passed over, so that an older
// client can talk to a newer daemon.
core::Result<std::vector<VmView>> vms_from_json(const nlohmann::json& json);
core::Result<std::vector<TenantView>> tenants_from_json(const nlohmann::json& json);
core::Result<TopView> top_from_json(const nlohmann::json& json);
core::Result<std::vector<CheckLine>> check_from_json(const nlohmann::json& json);

/// The JSON on one line; bytes that are not UTF-8 are replaced.
std::string to_line(const nlohmann::json& json);

}  // namespace kvmscope::hostd
