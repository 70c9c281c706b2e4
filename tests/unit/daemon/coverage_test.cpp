// SPDX-License-Identifier: Apache-2.0
#include "hostd/coverage.h"

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

tenancy::Epoch epoch_of(const std::string& uuid, tenancy::EpochState state) {
  tenancy::Epoch epoch;
  epoch.state = state;
  epoch.facts.emplace();
  epoch.facts->uuid = {uuid};
  return epoch;
}

TEST_CASE("coverage counts running domains against traced ones, with reasons") {
  Coverage coverage;
  for (const char* uuid : {"a", "b", "c", "d", "e"}) coverage.seen({uuid});
  coverage.problem({"f"}, "vm-f", "no QEMU process");
  const auto traced = epoch_of("a", tenancy::EpochState::attributed);
  const auto unattributed = epoch_of("b", tenancy::EpochState::unattributed);
  const auto over = epoch_of("c", tenancy::EpochState::over_quota);
  auto invisible = epoch_of("d", tenancy::EpochState::attributed);
  invisible.facts->disks = {{.target = "vda", .invisible_reason = "network"}};
  const auto closed = epoch_of("e", tenancy::EpochState::closed);

  const auto summary = coverage.summary({&traced, &unattributed, &over, &invisible, &closed});
  REQUIRE(summary.running == 6);
  REQUIRE(summary.traced == 2);
  REQUIRE(summary.untraced ==
          std::map<std::string, std::uint64_t>{{"the tenant's slots are used up", 1},
                                               {"no disk is visible to the host's block layer", 1},
                                               {"no slot yet", 1},
                                               {"no QEMU process", 1}});
}

TEST_CASE("what libvirt no longer lists is not running") {
  Coverage coverage;
  coverage.seen({"a"});
  coverage.problem({"b"}, "vm-b", "gone");
  coverage.listed({{"a"}});
  REQUIRE(coverage.summary({}).running == 1);
  REQUIRE(coverage.problems().empty());
}

}  // namespace
}  // namespace kvmscope::hostd
