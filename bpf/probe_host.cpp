// SPDX-License-Identifier: Apache-2.0
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "bpf/libbpf_log.h"
#include "bpf/loaded.h"
#include "bpf/process_files.h"
#include "bpf/tracer.h"

namespace kvmscope::bpf {
namespace {

using core::HostFeature;
using core::UniqueFd;

HostFeature kernel() {
  utsname name{};
  if (::uname(&name) != 0) return {.name = "kernel", .detail = std::strerror(errno)};
  int major = 0;
  int minor = 0;
  char dot = 0;
  std::istringstream(name.release) >> major >> dot >> minor;
  HostFeature feature{.name = "kernel", .present = std::pair(major, minor) >= std::pair(5, 15)};
  feature.detail = std::string(name.release) + " " + name.machine;
  if (!feature.present) feature.effect = "older than 5.15: not supported, nothing may load";
  return feature;
}

HostFeature type_information() {
  HostFeature feature{.name = "btf", .present = ::access("/sys/kernel/btf/vmlinux", R_OK) == 0};
  feature.detail = feature.present ? "/sys/kernel/btf/vmlinux" : "/sys/kernel/btf/vmlinux is missing";
  if (!feature.present) feature.effect = "no tracing at all: use a kernel with CONFIG_DEBUG_INFO_BTF=y";
  return feature;
}

HostFeature tracepoint(const std::string& name, std::string effect) {
  HostFeature feature{.name = "tp_btf " + name, .present = kernel_has_tracepoint(name)};
  feature.detail = feature.present ? "in the kernel's type information" : "not in this kernel";
  if (!feature.present) feature.effect = std::move(effect);
  return feature;
}

HostFeature task_storage() {
  HostFeature feature{.name = "task storage"};
  // Libbpf's own probe tries to create one.
  const int answer = libbpf_probe_bpf_map_type(BPF_MAP_TYPE_TASK_STORAGE, nullptr);
  feature.present = answer == 1;
  feature.detail = answer == 1 ? "yes" : answer == 0 ? "not in this kernel" : std::strerror(-answer);
  if (answer == -EPERM) feature.detail = "cannot tell without privilege";
  if (answer == 0) feature.effect = "no tracing: identities are kept with tasks (5.11 or later)";
  return feature;
}

HostFeature lsm() {
  const std::string list = read_line("/sys/kernel/security/lsm");
  HostFeature feature{.name = "lsm", .present = ("," + list + ",").find(",bpf,") != std::string::npos};
  feature.detail = list.empty() ? "unknown: securityfs is not mounted" : list;
  if (!feature.present) feature.effect = "security events would come from tracepoints: boot with lsm=...,bpf";
  return feature;
}

HostFeature lockdown() {
  const std::string modes = read_line("/sys/kernel/security/lockdown");
  const std::size_t from = modes.find('[');
  HostFeature feature{.name = "lockdown", .detail = "unknown: securityfs is not mounted"};
  if (from == std::string::npos) return feature;
  feature.detail = modes.substr(from + 1, modes.find(']') - from - 1);
  feature.present = feature.detail != "none";
  if (feature.detail == "confidentiality") feature.effect = "BPF may not read kernel memory: no tracing";
  return feature;
}

/// Loads and attaches an empty fentry program for a moment: some hardened kernels refuse only that.
HostFeature fentry() {
  HostFeature feature{.name = "fentry"};
  constexpr const char* kEffect = "stages that need kernel functions (vhost worker, kick) are not traced";
  const int id = libbpf_find_vmlinux_btf_id("vfs_fsync_range", BPF_TRACE_FENTRY);
  if (id < 0) {
    feature.detail = "no type information";
    feature.effect = kEffect;
    return feature;
  }
  const std::array<bpf_insn, 2> program{{{.code = BPF_ALU64 | BPF_MOV | BPF_K, .imm = 0},  // r0 = 0
                                         {.code = BPF_JMP | BPF_EXIT}}};
  LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = BPF_TRACE_FENTRY);
  options.attach_btf_id = static_cast<__u32>(id);
  const UniqueFd loaded(
      bpf_prog_load(BPF_PROG_TYPE_TRACING, "probe_fentry", "GPL", program.data(), program.size(), &options));
  const UniqueFd attached(loaded ? bpf_raw_tracepoint_open(nullptr, loaded.get()) : -1);
  const int why = errno;
  feature.present = static_cast<bool>(attached);
  feature.detail = feature.present ? "loads and attaches" : std::strerror(why);
  if (!feature.present && ::geteuid() != 0 && why == EPERM) feature.detail = "cannot tell without privilege";
  if (!feature.present) feature.effect = kEffect;
  return feature;
}

HostFeature jit() {
  const std::string value = read_line("/proc/sys/net/core/bpf_jit_enable");
  HostFeature feature{.name = "bpf jit", .present = value == "1" || value == "2"};
  feature.detail = value.empty() ? "unknown" : "net.core.bpf_jit_enable = " + value;
  if (value.empty()) feature.present = true;  // always on, or not ours to see
  if (!feature.present) feature.effect = "programs are interpreted and cost several times as much";
  return feature;
}

HostFeature unprivileged() {
  const std::string value = read_line("/proc/sys/kernel/unprivileged_bpf_disabled");
  HostFeature feature{.name = "unprivileged bpf", .present = value == "0"};
  feature.detail = "kernel.unprivileged_bpf_disabled = " + (value.empty() ? "unknown" : value);
  if (feature.present) feature.effect = "nothing here; for the host's safety set it to 1";
  return feature;
}

HostFeature kernel_addresses() {
  HostFeature feature{.name = "kernel symbols"};
  std::ifstream symbols("/proc/kallsyms");
  std::string address;
  symbols >> address;
  feature.present = address.find_first_not_of('0') != std::string::npos;
  feature.detail = feature.present ? "/proc/kallsyms shows addresses" : "/proc/kallsyms hides addresses";
  if (!feature.present) {
    feature.effect =
        "disks that are files are told apart only by device: needs CAP_SYSLOG or kptr_restrict = 0";
  }
  return feature;
}

HostFeature capabilities() {
  constexpr std::array<std::pair<const char*, unsigned>, 6> kUseful{{{"CAP_BPF", 39},
                                                                     {"CAP_PERFMON", 38},
                                                                     {"CAP_SYS_ADMIN", 21},
                                                                     {"CAP_SYS_PTRACE", 19},
                                                                     {"CAP_DAC_READ_SEARCH", 2},
                                                                     {"CAP_SYSLOG", 34}}};
  std::uint64_t effective = 0;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("CapEff:")) effective = std::stoull(line.substr(7), nullptr, 16);
  }
  const auto has = [effective](unsigned bit) { return (effective >> bit & 1U) != 0; };
  HostFeature feature{.name = "capabilities", .present = has(21) || (has(38) && has(39))};
  for (const auto& [name, bit] : kUseful) {
    if (has(bit)) feature.detail += (feature.detail.empty() ? "" : " ") + std::string(name);
  }
  if (feature.detail.empty()) feature.detail = "none that matter";
  if (!feature.present)
    feature.effect = "this process cannot trace: needs CAP_BPF and CAP_PERFMON, or root";
  else if (!has(21))
    feature.effect = "no cost figures of the programs: run-time statistics need CAP_SYS_ADMIN";
  return feature;
}

/// Where a file system of this type is mounted; empty if nowhere.
std::string mounted_at(const std::string& type) {
  std::ifstream mounts("/proc/self/mounts");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string source;
    std::string where;
    std::string found;
    if (fields >> source >> where >> found && found == type) return where;
  }
  return {};
}

HostFeature mount(std::string name, const std::string& type, std::string effect) {
  HostFeature feature{.name = std::move(name), .detail = mounted_at(type)};
  feature.present = !feature.detail.empty();
  if (!feature.present) {
    feature.detail = "not mounted";
    feature.effect = std::move(effect);
  }
  return feature;
}

}  // namespace

std::vector<HostFeature> probe_host() {
  const LibbpfLog log;
  return {
      kernel(),
      type_information(),
      tracepoint("block_io_start", "a block request's VM is found by its first bio at block_getrq: dearer"),
      tracepoint("block_rq_complete", "no disk figures"),
      tracepoint("sched_process_exec", "new QEMU processes are seen only when libvirt names them"),
      task_storage(),
      fentry(),
      lsm(),
      lockdown(),
      jit(),
      unprivileged(),
      kernel_addresses(),
      capabilities(),
      mount("cgroup v2", "cgroup2", "VMs' helper processes are found by process id only"),
      mount("bpffs", "bpf", "")};
}

}  // namespace kvmscope::bpf
