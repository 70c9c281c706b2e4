// SPDX-License-Identifier: Apache-2.0
#include "hostd/check_local.h"

#include <algorithm>

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

TEST_CASE("The host's check looks at the kernel, at privilege and at libvirt") {
  const auto lines = check_host("qemu:///system");
  for (const char* name : {"kernel", "capabilities", "libvirt"}) {
    INFO(name);
    CHECK(std::ranges::any_of(
        lines, [&](const CheckLine& line) { return line.name == name && !line.detail.empty(); }));
  }
}

}  // namespace
}  // namespace kvmscope::hostd
