// SPDX-License-Identifier: Apache-2.0
#include "hostd/qemu_event.h"

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

using Attributes = std::vector<core::Attribute>;

TEST_CASE("an event of QEMU's is a record; what names the host is the operator's") {
  const auto made = qemu_event({.name = "BLOCK_IO_ERROR",
                                .data = {{"device", ""},
                                         {"node-name", "libvirt-1-format"},
                                         {"operation", "write"},
                                         {"action", "report"},
                                         {"nospace", false},
                                         {"reason", "Input/output error"}},
                                .unix_ns = 5},
                               1, 9);
  REQUIRE(made);
  CHECK(made->record.event_name == "kvmscope.vm.qemu.block_io_error");
  CHECK(made->record.severity == core::Severity::error);
  CHECK(made->record.time_unix_ns == 5);
  CHECK(made->record.attributes == Attributes{{"qemu.action", "report"}, {"qemu.operation", "write"}});
  CHECK(made->operators == Attributes{{"qemu.nospace", false},
                                      {"qemu.reason", "Input/output error"},
                                      {"qemu.device", ""},
                                      {"qemu.node.name", "libvirt-1-format"}});
}

TEST_CASE("an event without data, and without a time") {
  const auto made = qemu_event({.name = "STOP", .unix_ns = std::nullopt}, 1, 9);
  REQUIRE(made);
  CHECK(made->record.event_name == "kvmscope.vm.qemu.stop");
  CHECK(made->record.time_unix_ns == 9);
  CHECK(made->record.attributes.empty());
  for (const auto& [said, shown] : {std::pair{0U, 3U}, {2U, 3U}, {4U, 4U}, {10U, 9U}})
    CHECK(qemu_event({.name = "STOP", .unix_ns = said}, 3, 9)->record.time_unix_ns == shown);
}

TEST_CASE("what is nobody's concern is no record, and what makes no sense no attribute") {
  CHECK_FALSE(qemu_event({.name = "RTC_CHANGE", .unix_ns = 1}, 1, 1));
  CHECK_FALSE(qemu_event({.name = "", .unix_ns = 1}, 1, 1));
  const auto made = qemu_event({.name = "RESET",
                                .data = {{"guest", 1},
                                         {"reason", nlohmann::json::array()},
                                         {"x", "y"},
                                         {"status", std::string(5'000, 'x')},
                                         {"type", "a\x1b\xff"}},
                                .unix_ns = 1},
                               1, 1);
  REQUIRE(made);
  CHECK(made->record.attributes == Attributes{{"qemu.status", std::string(100, 'x')}});
  CHECK(made->operators == Attributes{{"qemu.type", "a??"}});
}

}  // namespace
}  // namespace kvmscope::hostd
