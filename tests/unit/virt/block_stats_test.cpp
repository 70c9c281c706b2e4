// SPDX-License-Identifier: Apache-2.0
#include "virt/block_stats.h"

#include "tests/support/catch.h"

namespace kvmscope::virt {
namespace {

std::vector<StatField> disk(const std::string& number, const std::string& name) {
  const std::string at = "block." + number + ".";
  return {{at + "name", name, 0},        {at + "rd.reqs", "", 7}, {at + "rd.bytes", "", 28'672},
          {at + "rd.times", "", 900},    {at + "wr.reqs", "", 3}, {at + "wr.bytes", "", 4'096},
          {at + "wr.times", "", 1'000},  {at + "fl.reqs", "", 2}, {at + "fl.times", "", 50},
          {at + "capacity", "", 1 << 20}};
}

std::vector<StatField> operator+(std::vector<StatField> a, const std::vector<StatField>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST_CASE("a domain's disks by their targets") {
  const auto disks = guest_disks(std::vector<StatField>{{"block.count", "", 2}, {"state.state", "", 1}} +
                                 disk("0", "vda") + disk("11", "vdb"));
  REQUIRE(disks.size() == 2);
  CHECK(disks[0].target == "vda");
  CHECK(disks[0].read == GuestOperations{7, 28'672, 900});
  CHECK(disks[0].write == GuestOperations{3, 4'096, 1'000});
  CHECK(disks[0].flush == GuestOperations{2, 0, 50});
  CHECK(disks[1].target == "vdb");
}

TEST_CASE("a disk of which libvirt did not say all is missing, not zero") {
  for (std::size_t less = 0; less < 9; ++less) {
    auto fields = disk("0", "vda");
    fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(less));
    CHECK(guest_disks(fields).empty());
  }
  CHECK(guest_disks({{"block.0.name", "vda", 0}}).empty());
  CHECK(guest_disks({}).empty());
  CHECK(guest_disks({{"block.0.rd.reqs", "", 1}}).empty());
}

TEST_CASE("images below the top one are no disks of the guest") {
  const auto disks = guest_disks(disk("0", "vda") + disk("1", "vda") +
                                 std::vector<StatField>{{"block.1.backingIndex", "", 3}});
  REQUIRE(disks.size() == 1);
}

TEST_CASE("fields that make no sense are passed over") {
  for (const char* name :
       {"block.", "block.x.name", "block.0", "block.99999999999999.name", "blocks.0.name", ""})
    CHECK(guest_disks({{name, "vda", 0}}).empty());
}

}  // namespace
}  // namespace kvmscope::virt
