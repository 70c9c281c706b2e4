// SPDX-License-Identifier: Apache-2.0
#include "hostd/discovery.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <string>
#include <vector>

#include "hostd/core/unique_fd.h"
#include "tests/unit/virt/tree.h"

namespace kvmscope::hostd {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

/// A busy machine must not make a process look stuck.
constexpr auto kDeadline = 500ms;

const std::string kUuid = "6b766d73-0000-4000-8000-00000000000a";

virt::Entry qemu(unsigned pid, std::vector<std::string> more = {}) {
  virt::FakeProcess fake;
  fake.pid = pid;
  fake.start = 7;
  fake.arguments = {"qemu-system-x86_64", "-uuid", kUuid};
  fake.arguments.insert(fake.arguments.end(), more.begin(), more.end());
  return virt::process(fake);
}

/// A /proc in which the command line of process 2 cannot be read: nobody writes to the pipe that it is.
class Proc {
 public:
  Proc() : tree_({qemu(1), qemu(2), qemu(3), qemu(4, {"-machine", "none"})}) {
    tree_.remove("2/cmdline");
    REQUIRE(::mkfifo(tree_.path("2/cmdline").c_str(), 0600) == 0);
  }
  ~Proc() { release(); }
  /// Lets whoever waits go on. Opening succeeds only if somebody waits.
  bool release() const {
    return static_cast<bool>(
        core::UniqueFd(::open(tree_.path("2/cmdline").c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC)));
  }
  const std::string& root() const { return tree_.root(); }

 private:
  virt::TempTree tree_;
};

/// Turns the loop until `done`, for ten seconds at most.
template <typename Done>
bool turn(boost::asio::io_context& io, Done done) {
  const auto end = Clock::now() + 10s;
  while (Clock::now() < end) {
    if (done()) return true;
    io.restart();
    io.run_for(10ms);
  }
  return false;
}

TEST_CASE("a process that cannot be looked at holds up neither the others nor the end") {
  const Proc proc;
  boost::asio::io_context io;
  std::vector<std::string> said;
  const auto describe = [&](Discovery& discovery, std::uint32_t pid) {
    discovery.describe({pid, 7}, [&said, pid](const std::optional<tenancy::ProcessHint>& hint) {
      said.push_back(std::to_string(pid) + (hint ? " is " + hint->uuid.value : " is unknown"));
    });
  };
  {
    Discovery discovery(io.get_executor(), proc.root(), {"qemu-system-*"}, kDeadline);
    describe(discovery, 1);
    describe(discovery, 2);
    discovery.after([&] { said.emplace_back("after 2"); });
    describe(discovery, 3);
    CHECK(said.empty());
    REQUIRE(turn(io, [&] { return said.size() == 4; }));
    CHECK(said == std::vector<std::string>{"1 is " + kUuid, "2 is unknown", "after 2", "3 is " + kUuid});

    // Not looked at again while that look has not come back: it would cost a thread each time.
    describe(discovery, 2);
    const auto began = Clock::now();
    REQUIRE(turn(io, [&] { return said.size() == 5; }));
    CHECK(Clock::now() - began < kDeadline);
    CHECK(said.back() == "2 is unknown");
  }
  CHECK(proc.release());  // it was still held up, and the destructor did not wait for it
}

TEST_CASE("a scan tells of every process but those that are known, and of what is gone") {
  const Proc proc;
  boost::asio::io_context io;
  Discovery discovery(io.get_executor(), proc.root(), {"qemu-system-*"}, kDeadline);
  std::optional<Discovery::Found> found;
  bool later = false;
  discovery.scan({{3, 7}, {5, 7}, {1, 6}}, [&](Discovery::Found result) {
    CHECK_FALSE(later);
    found = std::move(result);
  });
  discovery.after([&] { later = true; });
  REQUIRE(turn(io, [&] { return later; }));
  REQUIRE(found);
  CHECK(found->gone == std::vector<core::ProcessKey>{{5, 7}, {1, 6}});
  std::ranges::sort(found->running, {}, &Discovery::Running::process);
  REQUIRE(found->running.size() == 2);
  CHECK(found->running[0].process == core::ProcessKey{1, 7});
  CHECK(found->running[0].comm == "qemu-system-x86");
  REQUIRE(found->running[0].hint);
  CHECK(found->running[0].hint->uuid.value == kUuid);
  CHECK(found->running[1].process == core::ProcessKey{2, 7});
  CHECK_FALSE(found->running[1].hint);
}

TEST_CASE("a look that comes back late is looked at anew") {
  const Proc proc;
  boost::asio::io_context io;
  Discovery discovery(io.get_executor(), proc.root(), {"qemu-system-*"}, kDeadline);
  int unknown = 0;
  const auto describe = [&] {
    discovery.describe({2, 7}, [&](const auto& hint) { unknown += hint ? 0 : 1; });
  };
  describe();
  REQUIRE(turn(io, [&] { return unknown == 1; }));
  REQUIRE(proc.release());
  // Its late answer is nobody's: what is asked from now on begins a look of its own, which a writer sees.
  REQUIRE(turn(io, [&] {
    describe();
    return proc.release();
  }));
  CHECK(unknown >= 1);
}

}  // namespace
}  // namespace kvmscope::hostd
