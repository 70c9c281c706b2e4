// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hostd/core/host_feature.h"
#include "hostd/core/ids.h"
#include "hostd/core/result.h"
#include "hostd/core/vm.h"
#include "virt/block_stats.h"

namespace kvmscope::virt {

/// A running domain appeared, or something about it changed (disks, NICs, metadata, cgroups).
struct VmSeen {
  core::VmFacts facts;
};

/// A domain we had reported runs no more. `process` is the one reported last.
struct VmGone {
  core::VmUuid uuid;
  core::ProcessKey process;
};

/// A running domain that could not be described: no QEMU process found, XML that cannot be read. For
/// coverage.
struct VmProblem {
  core::VmUuid uuid;
  std::string name;
  std::string reason;  ///< one of a few fixed texts: fit for a metric's label
  std::string detail;  ///< what exactly, with paths and the like; may be empty
};

struct ConnectionState {
  bool connected = false;
  std::string detail;  ///< URI and version, or why not
};

/// Domains of one libvirt, for as long as the object lives.
///
/// Threads: libvirt's event loop and the blocking calls run on the source's own threads; every callback is
/// posted to Options::executor as a plain value. Nothing here ever blocks the caller. Events missed while the
/// connection was down are made up by a relist: a domain that went meanwhile yields VmGone, one that was
/// replaced VmGone and VmSeen.
class LibvirtSource {
 public:
  struct Options {
    boost::asio::any_io_executor executor;
    std::string uri = "qemu:///system";
    std::string proc_root = "/proc";
    std::string cgroup_root;  ///< mount point of the unified hierarchy; empty: found in /proc/self/mountinfo
    std::string run_dir = "/run/libvirt/qemu";          ///< where libvirt keeps its pid and status files
    std::chrono::milliseconds rescan_interval{10'000};  ///< full relist, against lost events
    std::chrono::milliseconds cgroup_interval{1'000};   ///< look for new descendants of known scopes
    std::chrono::milliseconds stats_interval{10'000};   ///< of block statistics
    std::chrono::milliseconds call_deadline{5'000};
    std::chrono::milliseconds reconnect_min{250};
    std::chrono::milliseconds reconnect_max{15'000};
    std::function<void(VmSeen)> on_seen;
    std::function<void(VmGone)> on_gone;
    std::function<void(VmProblem)> on_problem;
    std::function<void(ConnectionState)> on_connection;
    /// After every complete relist: UUIDs of all running domains, described or not. For coverage.
    std::function<void(std::vector<core::VmUuid>)> on_listed;
    /// What the guests' disks have done, of all running domains that could say. Not asked for without it.
    std::function<void(std::vector<BlockReading>)> on_block_stats;
  };

  /// Starts the threads; connecting goes on in the background, for ever. Only one source may live in a
  /// process at a time (libvirt has one default event loop).
  static core::Result<std::unique_ptr<LibvirtSource>> start(Options options);
  /// Stops and joins within the call deadline; a call that libvirtd never answers is abandoned, not waited
  /// for.
  ~LibvirtSource();

  /// Ask for a relist now.
  void refresh();

 private:
  struct Impl;
  explicit LibvirtSource(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

/// What /proc says about a QEMU process: enough to tell a VM from libvirt's capability probe before libvirt
/// speaks.
struct QemuProcess {
  core::ProcessKey process;
  std::string comm;
  core::VmUuid uuid;                  ///< from -uuid on its command line; empty if there is none
  std::string guest_name;             ///< from -name guest=...; empty if there is none
  bool capability_probe = false;      ///< -machine none
  bool in_container = false;          ///< in another pid namespace than ours
  std::string cgroup_path;            ///< unified hierarchy
  std::optional<std::uint32_t> user;  ///< the real one; empty if unreadable
};

/// Describes one process. not_found if it is gone, or was replaced by another of the same pid.
core::Result<QemuProcess> describe_qemu(const std::string& proc_root, core::ProcessKey process);

/// All processes whose executable's base name matches one of `names` (a trailing '*' matches any ending).
/// Reads nothing of their memory: unlike describe_qemu(), it cannot be held up by a process that is busy with
/// it.
std::vector<core::ProcessKey> find_qemu(const std::string& proc_root, const std::vector<std::string>& names);

/// The key of a live process, or not_found.
core::Result<core::ProcessKey> process_key(const std::string& proc_root, std::uint32_t pid);

/// For `kvmscope check`: whether libvirt answers, its version, and the cgroup layout in use.
std::vector<core::HostFeature> probe_host(const std::string& uri);

}  // namespace kvmscope::virt
