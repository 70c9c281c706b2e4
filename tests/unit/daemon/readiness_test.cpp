// SPDX-License-Identifier: Apache-2.0
#include "hostd/readiness.h"

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

using namespace std::chrono_literals;

tenancy::RegistryStats slots(std::uint32_t total, std::uint32_t in_use, std::uint32_t spare,
                             std::uint32_t retiring = 0) {
  tenancy::RegistryStats stats;
  stats.slots_total = total;
  stats.slots_in_use = in_use;
  stats.slots_spare = spare;
  stats.slots_retiring = retiring;
  return stats;
}

TEST_CASE("ready is who has looked at what runs and has all spare slots") {
  CHECK_FALSE(readiness(false, 16, 16, slots(23, 0, 16), 1h));
  CHECK_FALSE(readiness(true, 15, 16, slots(100, 10, 15), 1s));
  const auto ready = readiness(true, 16, 16, slots(100, 10, 16), 1s);
  REQUIRE(ready);
  CHECK(ready->warning.empty());
}

TEST_CASE("ready is who will never have more spare slots") {
  // max_slots 24, spare_slots 16, ten QEMUs.
  const auto full = readiness(true, 13, 16, slots(23, 10, 13), 1s);
  REQUIRE(full);
  CHECK(full->remedy.find("bpf.max_slots") != std::string_view::npos);
  CHECK(readiness(true, 0, 16, slots(23, 20, 0, 3), 1s));
  // One is being installed.
  CHECK_FALSE(readiness(true, 12, 16, slots(23, 10, 12), 1s));
}

TEST_CASE("ready is, with a warning, who has waited long enough for slots that cannot be made") {
  CHECK_FALSE(readiness(true, 0, 16, slots(100, 0, 0), 9s));
  const auto late = readiness(true, 0, 16, slots(100, 0, 0), 10s);
  REQUIRE(late);
  CHECK_FALSE(late->warning.empty());
  CHECK_FALSE(late->remedy.empty());
  CHECK_FALSE(readiness(false, 0, 16, slots(100, 0, 0), 10s));
}

}  // namespace
}  // namespace kvmscope::hostd
