// SPDX-License-Identifier: Apache-2.0
#include "virt/call_pool.h"

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <semaphore>
#include <thread>

#include "tests/support/catch.h"

namespace kvmscope::virt {
namespace {

using namespace std::chrono_literals;

struct Shared {
  std::counting_semaphore<> entered{0};
  std::counting_semaphore<> leave{0};
  std::atomic<int> returned{0};
  std::function<void()> call(const std::shared_ptr<Shared>& self) {
    return [self] {
      self->entered.release();
      self->leave.acquire();
      ++self->returned;
    };
  }
};

TEST_CASE("a call that does not return costs no thread for others") {
  const auto stuck = std::make_shared<Shared>();
  CallPool pool(1);
  pool.submit(1, stuck->call(stuck));
  REQUIRE(stuck->entered.try_acquire_for(5s));
  auto promise = std::make_shared<std::promise<void>>();
  auto done = promise->get_future();
  pool.submit(2, [promise] { promise->set_value(); });
  CHECK(done.wait_for(100ms) == std::future_status::timeout);
  CHECK(pool.abandon(1));
  CHECK(done.wait_for(5s) == std::future_status::ready);
  CHECK_FALSE(pool.abandon(1));
  CHECK(pool.stop(5s));  // the one given up is not waited for
  stuck->leave.release();
  while (stuck->returned == 0) std::this_thread::yield();
}

TEST_CASE("stop waits for what runs, drops what has not begun, and gives up in time") {
  const auto stuck = std::make_shared<Shared>();
  const auto never = std::make_shared<Shared>();
  CallPool pool(2);
  pool.submit(1, stuck->call(stuck));
  pool.submit(2, stuck->call(stuck));
  pool.submit(3, never->call(never));
  REQUIRE(stuck->entered.try_acquire_for(5s));
  REQUIRE(stuck->entered.try_acquire_for(5s));
  CHECK_FALSE(pool.stop(50ms));
  stuck->leave.release(2);
  CHECK(pool.stop(5s));
  CHECK(stuck->returned == 2);
  CHECK_FALSE(never->entered.try_acquire());
  pool.submit(4, never->call(never));
  CHECK_FALSE(never->entered.try_acquire_for(50ms));
}

TEST_CASE("what has not begun is not given up: it would never answer") {
  const auto stuck = std::make_shared<Shared>();
  const auto waiting = std::make_shared<Shared>();
  CallPool pool(1);
  pool.submit(1, stuck->call(stuck));
  REQUIRE(stuck->entered.try_acquire_for(5s));
  pool.submit(2, waiting->call(waiting));
  CHECK_FALSE(pool.abandon(2));
  stuck->leave.release();
  REQUIRE(waiting->entered.try_acquire_for(5s));
  CHECK(pool.abandon(2));
  waiting->leave.release();
}

}  // namespace
}  // namespace kvmscope::virt
