// SPDX-License-Identifier: Apache-2.0
#include "hostd/core/unique_fd.h"

#include <fcntl.h>

#include "hostd/core/clock.h"
#include "hostd/core/ids.h"
#include "hostd/core/metric.h"
#include "hostd/core/result.h"
#include "hostd/core/vm.h"
#include "tests/support/catch.h"

namespace kvmscope::core {
namespace {

bool is_open(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}

TEST_CASE("UniqueFd closes what it owns exactly once") {
  const int raw = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  REQUIRE(raw >= 0);
  {
    UniqueFd fd(raw);
    UniqueFd moved(std::move(fd));
    REQUIRE(moved.get() == raw);
    REQUIRE(is_open(raw));
  }
  REQUIRE_FALSE(is_open(raw));
}

TEST_CASE("move-assignment closes the descriptor that was there") {
  UniqueFd first(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int raw = first.get();
  UniqueFd second(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  const int kept = second.get();
  first = std::move(second);
  REQUIRE_FALSE(is_open(raw));
  REQUIRE(first.get() == kept);
  REQUIRE(is_open(kept));
}

TEST_CASE("an error keeps its code and gains context outermost first") {
  const Error inner = Error::from_errno("open /x", ENOENT);
  const Error outer = inner.wrap("read config");
  REQUIRE(outer.code() == ErrorCode::not_found);
  REQUIRE(outer.message() == "read config: open /x: No such file or directory");
}

}  // namespace
}  // namespace kvmscope::core
