// SPDX-License-Identifier: Apache-2.0
#include "hostd/check_local.h"

#include <algorithm>
#include <set>

#include "hostd/host_id.h"
#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

std::set<std::string> held(const std::string& status) {
  std::set<std::string> names;
  for (const CheckLine& line : check_capabilities(status)) {
    CHECK(line.effect.empty() == line.ok);
    if (line.ok) names.insert(line.name);
  }
  return names;
}

TEST_CASE("Capabilities come from the effective set") {
  // CAP_BPF is 39, CAP_PERFMON 38.
  CHECK(held("Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t000000c000000000\nCapBnd:\tff\n") ==
        std::set<std::string>{"CAP_BPF", "CAP_PERFMON"});
  CHECK(held("CapEff:\t0000000000000000\n").empty());
  CHECK(held("").empty());
  CHECK(held("CapEff:\t000001ffffffffff\n").size() == 5);
}

TEST_CASE("The host's own lines are there") {
  const auto lines = check_host("qemu:///system");
  CHECK(std::ranges::any_of(lines, [](const CheckLine& line) { return line.name == "CAP_BPF"; }));
}

TEST_CASE("A host has the same id every time, and it is not the machine-id") {
  const std::string id = default_host_id();
  CHECK_FALSE(id.empty());
  CHECK(id == default_host_id());
}

}  // namespace
}  // namespace kvmscope::hostd
