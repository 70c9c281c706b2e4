// SPDX-License-Identifier: Apache-2.0
#include "hostd/host_id.h"

#include <fstream>

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

TEST_CASE("A host has the same id every time, and it is not the machine-id") {
  const std::string id = default_host_id();
  CHECK_FALSE(id.empty());
  CHECK(id == default_host_id());
  std::string machine_id;
  std::getline(std::ifstream("/etc/machine-id"), machine_id);
  CHECK(id != machine_id);
}

}  // namespace
}  // namespace kvmscope::hostd
