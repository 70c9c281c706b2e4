// SPDX-License-Identifier: Apache-2.0
#include "hostd/check_local.h"

#include <linux/capability.h>

#include <charconv>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <string_view>
#include <utility>

#ifdef KVMSCOPE_HAVE_BPF
#include "bpf/tracer.h"
#endif
#ifdef KVMSCOPE_HAVE_VIRT
#include "virt/libvirt_source.h"
#endif

namespace kvmscope::hostd {
namespace {

struct Capability {
  std::string_view name;
  unsigned number;
  std::string_view effect;
};

constexpr Capability kCapabilities[] = {
    {"CAP_BPF", CAP_BPF, "nothing can be traced"},
    {"CAP_PERFMON", CAP_PERFMON, "nothing can be traced"},
    {"CAP_SYS_PTRACE", CAP_SYS_PTRACE,
     "QEMU processes of other users are not recognised before libvirt names them"},
    {"CAP_DAC_READ_SEARCH", CAP_DAC_READ_SEARCH, "disks in directories closed to this user are not traced"},
    {"CAP_SYS_ADMIN", CAP_SYS_ADMIN, "no run times of the programs in the self-metrics"},
};

[[maybe_unused]] void append(std::vector<CheckLine>& lines, auto features) {
  for (auto& feature : features)
    lines.push_back(
        {std::move(feature.name), feature.present, std::move(feature.detail), std::move(feature.effect)});
}

}  // namespace

std::vector<CheckLine> check_capabilities(const std::string& proc_status) {
  constexpr std::string_view kField = "CapEff:\t";
  std::uint64_t effective = 0;
  if (const std::size_t at = proc_status.find(kField); at != std::string::npos) {
    const char* begin = proc_status.data() + at + kField.size();
    std::from_chars(begin, proc_status.data() + proc_status.size(), effective, 16);
  }
  std::vector<CheckLine> lines;
  for (const Capability& capability : kCapabilities) {
    const bool there = (effective >> capability.number & 1) != 0;
    lines.push_back({std::string(capability.name), there, there ? "held" : "not held by this process",
                     there ? std::string() : std::string(capability.effect)});
  }
  return lines;
}

std::vector<CheckLine> check_host([[maybe_unused]] const std::string& libvirt_uri) {
  std::vector<CheckLine> lines;
#ifdef KVMSCOPE_HAVE_BPF
  append(lines, bpf::probe_host());
#endif
  std::ifstream status("/proc/self/status");
  for (CheckLine& line : check_capabilities({std::istreambuf_iterator<char>(status), {}}))
    lines.push_back(std::move(line));
#ifdef KVMSCOPE_HAVE_VIRT
  append(lines, virt::probe_host(libvirt_uri));
#endif
  return lines;
}

}  // namespace kvmscope::hostd
