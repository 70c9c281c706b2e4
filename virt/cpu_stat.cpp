// SPDX-License-Identifier: Apache-2.0
#include "virt/cpu_stat.h"

#include <charconv>
#include <optional>
#include <string_view>

#include "virt/files.h"

namespace kvmscope::virt {
namespace {

struct Stat {
  std::uint64_t periods = 0;  ///< 0: no quota was ever set
  std::uint64_t throttled_ns = 0;
};

std::uint64_t value_of(std::string_view text, std::string_view key) {
  for (std::size_t line = 0; line < text.size();) {
    const std::size_t end = std::min(text.find('\n', line), text.size());
    const std::string_view entry = text.substr(line, end - line);
    line = end + 1;
    if (!entry.starts_with(key) || entry.size() <= key.size() || entry[key.size()] != ' ') continue;
    std::uint64_t value = 0;
    std::from_chars(entry.data() + key.size() + 1, entry.data() + entry.size(), value);
    return value;
  }
  return 0;
}

std::optional<Stat> read_stat(const std::string& directory) {
  const auto text = read_file(directory + "/cpu.stat");
  if (!text) return std::nullopt;
  return Stat{.periods = value_of(*text, "nr_periods"),
              .throttled_ns = value_of(*text, "throttled_usec") * 1000};
}

}  // namespace

CpuThrottle read_cpu_throttle(const std::string& directory, std::uint32_t vcpus) {
  CpuThrottle throttle{.vm_ns = 0, .vcpu_ns = std::vector<std::uint64_t>(vcpus)};
  // libvirt 7.1 and later: one more level below a systemd scope. A quota on the whole VM is on either.
  std::string parent = directory + "/libvirt";
  const auto inner = read_stat(parent);
  const auto outer = read_stat(directory);
  if (!inner) parent = directory;
  throttle.vm_ns = (inner ? inner->throttled_ns : 0) + (outer ? outer->throttled_ns : 0);
  for (std::uint32_t vcpu = 0; vcpu < vcpus; ++vcpu) {
    const auto stat = read_stat(parent + "/vcpu" + std::to_string(vcpu));
    // libvirt gives the quota to all vCPUs or to none.
    if (vcpu == 0 && (!stat || stat->periods == 0)) break;
    if (stat) throttle.vcpu_ns[vcpu] = stat->throttled_ns;
  }
  return throttle;
}

}  // namespace kvmscope::virt
