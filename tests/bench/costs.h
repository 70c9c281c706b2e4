// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bpf/bpf.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>

namespace kvmscope::bpf::test {

/// Runs and nanoseconds of a program.
struct Cost {
  std::uint64_t runs = 0;
  std::uint64_t ns = 0;
  double each() const { return runs == 0 ? 0 : static_cast<double>(ns) / static_cast<double>(runs); }
};
using Costs = std::map<std::string, Cost>;

/// Every program in the kernel whose name begins so. (The same name in two objects would add up: none does
/// here.)
inline Costs costs(const std::string& prefix) {
  Costs out;
  for (__u32 id = 0; bpf_prog_get_next_id(id, &id) == 0;) {
    const int fd = bpf_prog_get_fd_by_id(id);
    bpf_prog_info info{};
    __u32 size = sizeof(info);
    if (fd >= 0 && bpf_obj_get_info_by_fd(fd, &info, &size) == 0 &&
        std::string(info.name).starts_with(prefix)) {
      out[info.name].runs += info.run_cnt;
      out[info.name].ns += info.run_time_ns;
    }
    if (fd >= 0) ::close(fd);
  }
  return out;
}

inline Costs since(Costs after, const Costs& before) {
  for (auto& [name, cost] : after) {
    if (const auto old = before.find(name); old != before.end()) {
      cost.runs -= old->second.runs;
      cost.ns -= old->second.ns;
    }
  }
  return after;
}

inline double sum(const Costs& all) {
  double ns = 0;
  for (const auto& [name, cost] : all) ns += cost.each();
  return ns;
}

inline void print(const char* title, const Costs& all) {
  std::printf("%s\n", title);
  for (const auto& [name, cost] : all) {
    if (cost.runs > 0) std::printf("  %-18s %9lu runs %7.1f ns\n", name.c_str(), cost.runs, cost.each());
  }
}

}  // namespace kvmscope::bpf::test
