// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/tenancy/simulation.h"

namespace kvmscope::tenancy::testing {
namespace {

void run(SimulationOptions options, std::uint32_t seeds) {
  for (std::uint32_t seed = 1; seed <= seeds; ++seed) {
    options.seed = seed;
    INFO("seed " << seed);
    Simulation simulation(options);
    for (int step = 0; step < 4000; ++step) {
      INFO("step " << step);
      simulation.step();
    }
    simulation.finish();
    // The run must have been about something.
    REQUIRE(simulation.attributed_units > 1000);
  }
}

TEST_CASE("whatever the order of events, work is charged to its owner or to nobody") {
  run({}, 12);
}

TEST_CASE("VMs whose owner never changes are never charged to anybody else") {
  run({.owners_change = false}, 12);
}

TEST_CASE("tenants with quotas and many VMs get what is theirs") {
  run({.shared_tenants = true}, 12);
}

TEST_CASE("lost events are made up for by the audit") {
  run({.lossy = true}, 12);
}

TEST_CASE("lost events, quotas and a pool that is too small") {
  run({.lossy = true, .shared_tenants = true, .max_slots = 8}, 12);
}

}  // namespace
}  // namespace kvmscope::tenancy::testing
