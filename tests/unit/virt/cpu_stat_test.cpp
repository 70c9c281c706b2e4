// SPDX-License-Identifier: Apache-2.0
#include "virt/cpu_stat.h"

#include "tests/support/catch.h"
#include "tests/unit/virt/tree.h"

namespace kvmscope::virt {
namespace {

std::string stat(std::uint64_t periods, std::uint64_t throttled_usec) {
  return "usage_usec 1\nuser_usec 1\nnr_periods " + std::to_string(periods) +
         "\nnr_throttled 7\nthrottled_usec " + std::to_string(throttled_usec) + "\nnr_bursts 0\n";
}

TEST_CASE("throttling is read of each vCPU and of the VM, with and without systemd's extra level") {
  for (const bool extra : {false, true}) {
    CAPTURE(extra);
    const std::vector<Entry> vcpus = {dir("vcpu0", {file("cpu.stat", stat(9, 100))}),
                                      dir("vcpu1", {file("cpu.stat", stat(9, 200))}),
                                      dir("emulator", {file("cpu.stat", stat(0, 0))})};
    std::vector<Entry> scope = {file("cpu.stat", stat(5, 30))};
    if (extra) {
      std::vector<Entry> inner = vcpus;
      inner.push_back(file("cpu.stat", stat(5, 4)));
      scope.push_back(dir("libvirt", inner));
    } else {
      scope.insert(scope.end(), vcpus.begin(), vcpus.end());
    }
    const TempTree tree({dir("vm", scope)});
    const CpuThrottle throttle = read_cpu_throttle(tree.path("vm"), 3);  // vcpu2 is not plugged in
    REQUIRE(throttle.vcpu_ns == std::vector<std::uint64_t>{100'000, 200'000, 0});
    REQUIRE(throttle.vm_ns == (extra ? 34'000 : 30'000));
  }
}

TEST_CASE("no quota, no controller, no VM: nothing was throttled") {
  const TempTree tree(
      {dir("idle", {dir("vcpu0", {file("cpu.stat", "usage_usec 5\n")})}),
       dir("odd", {dir("vcpu0", {file("cpu.stat", "nr_periods 4\nthrottled_usec\nthrottled_usecs 7")})})});
  for (const char* name : {"idle", "odd", "missing"}) {
    const CpuThrottle throttle = read_cpu_throttle(tree.path(name), 2);
    REQUIRE(throttle.vm_ns == 0);
    REQUIRE(throttle.vcpu_ns == std::vector<std::uint64_t>{0, 0});
  }
}

}  // namespace
}  // namespace kvmscope::virt
