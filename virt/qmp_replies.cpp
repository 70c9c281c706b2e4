// SPDX-License-Identifier: Apache-2.0
#include "virt/qmp_replies.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "virt/qmp_json.h"

namespace kvmscope::virt {

using nlohmann::json;

// Not in an unnamed namespace: read_member() finds them by the namespace of what they read.

static bool read_json(const json& from, LatencyHistogram& to, std::string& wrong) {
  const auto& boundaries = to.boundaries_ns;
  return read_member(from, "boundaries", to.boundaries_ns, wrong) &&
         read_member(from, "bins", to.bins, wrong) && to.bins.size() == boundaries.size() + 1 &&
         (boundaries.empty() || boundaries.front() > 0) &&
         std::ranges::adjacent_find(boundaries, std::greater_equal()) == boundaries.end();
}

/// BlockDeviceStats of qapi/block-core.json: what is not there in this QEMU or for this kind stays empty.
static bool read_operations(const json& stats, const std::string& kind, BlockOperations& to,
                            std::string& wrong) {
  return read_member(stats, (kind + "_operations").c_str(), to.operations, wrong) &&
         read_member(stats, (kind + "_bytes").c_str(), to.bytes, wrong) &&
         read_member(stats, (kind + "_total_time_ns").c_str(), to.total_time_ns, wrong) &&
         read_member(stats, ("failed_" + kind + "_operations").c_str(), to.failed, wrong) &&
         read_member(stats, (kind + "_merged").c_str(), to.merged, wrong) &&
         read_member(stats, (kind + "_latency_histogram").c_str(), to.latency, wrong);
}

/// `to` stays as it is if there is no such member.
static bool read_name(const json& from, const char* name, std::string& to, std::string& wrong) {
  return !from.contains(name) || read_member(from, name, to, wrong);
}

static bool read_json(const json& from, BlockDeviceStats& to, std::string& wrong) {
  const json* stats = nullptr;
  return read_name(from, "qdev", to.qdev, wrong) && read_name(from, "node-name", to.node_name, wrong) &&
         read_name(from, "device", to.device, wrong) && read_member(from, "stats", stats, wrong) &&
         read_operations(*stats, "rd", to.read, wrong) && read_operations(*stats, "wr", to.write, wrong) &&
         read_operations(*stats, "flush", to.flush, wrong) &&
         read_operations(*stats, "unmap", to.unmap, wrong);
}

static bool read_thread_id(const json& from, std::uint32_t& to, std::string& wrong) {
  if (!read_member(from, "thread-id", to, wrong)) return false;
  if (to != 0 && to <= 0x7fff'ffff) return true;
  wrong = "thread-id";
  return false;
}

static bool read_json(const json& from, VcpuThread& to, std::string& wrong) {
  return read_member(from, "cpu-index", to.index, wrong) && read_thread_id(from, to.thread_id, wrong);
}

static bool read_json(const json& from, IoThread& to, std::string& wrong) {
  return read_member(from, "id", to.id, wrong) && read_thread_id(from, to.thread_id, wrong);
}

static bool read_json(const json& from, RunStatus& to, std::string& wrong) {
  return read_member(from, "running", to.running, wrong) && read_member(from, "status", to.status, wrong);
}

template <typename T>
static core::Result<T> read_reply(const char* command, const json& returned) {
  T value;
  std::string wrong;
  if (read_json(returned, value, wrong)) return value;
  return core::fail(core::ErrorCode::corrupt,
                    std::string(command) + " returned " +
                        (wrong.empty() ? "no such thing" : "no or a wrong '" + wrong + "'"));
}

core::Result<std::vector<BlockDeviceStats>> read_blockstats(const json& returned) {
  return read_reply<std::vector<BlockDeviceStats>>("query-blockstats", returned);
}
core::Result<std::vector<VcpuThread>> read_cpus_fast(const json& returned) {
  return read_reply<std::vector<VcpuThread>>("query-cpus-fast", returned);
}
core::Result<std::vector<IoThread>> read_iothreads(const json& returned) {
  return read_reply<std::vector<IoThread>>("query-iothreads", returned);
}
core::Result<RunStatus> read_status(const json& returned) {
  return read_reply<RunStatus>("query-status", returned);
}

}  // namespace kvmscope::virt
