// SPDX-License-Identifier: Apache-2.0
#include "exporters/worker.h"

#include <pthread.h>

#include <future>
#include <optional>
#include <thread>

#include "tests/support/catch.h"
#include "tests/unit/exporters/receiver.h"

namespace kvmscope::exporters {
namespace {

using namespace std::chrono_literals;

/// No thread of the default size can be made: its stack is larger than the address space.
class NoThreads {
 public:
  NoThreads() {
    REQUIRE(::pthread_getattr_default_np(&before_) == 0);
    pthread_attr_t attributes;
    REQUIRE(::pthread_getattr_default_np(&attributes) == 0);
    REQUIRE(::pthread_attr_setstacksize(&attributes, std::size_t{1} << 50) == 0);
    REQUIRE(::pthread_setattr_default_np(&attributes) == 0);
    ::pthread_attr_destroy(&attributes);
  }
  ~NoThreads() {
    ::pthread_setattr_default_np(&before_);
    ::pthread_attr_destroy(&before_);
  }
  NoThreads(const NoThreads&) = delete;
  NoThreads& operator=(const NoThreads&) = delete;

 private:
  pthread_attr_t before_{};
};

TEST_CASE("jobs run one after the other, off the caller's thread, and later ones after a pause too") {
  Worker worker("test", 1s);
  std::vector<int> order;
  for (int round = 0; round < 3; ++round) {
    std::promise<void> over;
    for (int i = 0; i < 10; ++i) REQUIRE(worker.run([&order, i] { order.push_back(i); }));
    REQUIRE(worker.run([&, caller = std::this_thread::get_id()] {
      if (std::this_thread::get_id() != caller) over.set_value();
    }));
    REQUIRE(over.get_future().wait_for(10s) == std::future_status::ready);
    REQUIRE(order.size() == 10U * static_cast<std::size_t>(round + 1));
    std::this_thread::sleep_for(5ms);  // its thread ends
  }
  for (std::size_t i = 0; i < order.size(); ++i) REQUIRE(order[i] == static_cast<int>(i % 10));
}

TEST_CASE("a worker's end waits for the job under way, not for those behind it, nor for ever") {
  auto ran = std::make_shared<std::atomic<int>>(0);
  auto let_go = std::make_shared<std::promise<void>>();
  {
    Worker worker("test", 10s);
    std::promise<void> begun;
    REQUIRE(worker.run([&] {
      begun.set_value();
      std::this_thread::sleep_for(50ms);
      ++*ran;
    }));
    REQUIRE(worker.run([ran] { ++*ran; }));
    begun.get_future().wait();
  }
  REQUIRE(*ran == 1);
  auto hangs = std::make_shared<std::promise<void>>();
  const auto begin = std::chrono::steady_clock::now();
  {
    Worker worker("test", 50ms);
    REQUIRE(worker.run(
        [ran, hangs, future = std::make_shared<std::shared_future<void>>(let_go->get_future().share())] {
          hangs->set_value();
          future->wait();
          ++*ran;
        }));
    hangs->get_future().wait();
  }
  REQUIRE(std::chrono::steady_clock::now() - begin < 5s);
  let_go->set_value();
  while (*ran != 2) std::this_thread::sleep_for(1ms);
}

TEST_CASE("that there is no thread to be had is an error, and the next job gets one") {
  Worker worker("test", 1s);
  bool ran = false;
  {
    const NoThreads none;
    const auto started = worker.run([&ran] { ran = true; });
    REQUIRE_FALSE(started.has_value());
    REQUIRE(started.error().code() == core::ErrorCode::resource_exhausted);
    REQUIRE(started.error().message().starts_with("start a thread: "));
  }
  std::promise<void> over;
  REQUIRE(worker.run([&over] { over.set_value(); }));
  over.get_future().wait();
  REQUIRE_FALSE(ran);
}

TEST_CASE("a file stream without a thread says so, keeps its data, and writes it later") {
  const TempDir dir;
  StreamConfig config;
  config.path = dir.file("blue.jsonl");
  config.backoff_min = 10ms;
  config.backoff_max = 30ms;
  boost::asio::io_context io;
  auto stream = Stream::make(io.get_executor(), core::TenantId{"blue"}, config);
  REQUIRE(stream.has_value());
  std::optional<Stream::Outcome> done;
  {
    const NoThreads none;
    (*stream)->submit(batch("blue", "a"), [&](Stream::Outcome outcome) { done = outcome; });
    REQUIRE_FALSE((*stream)->stats().healthy);
    REQUIRE((*stream)->stats().last_error.starts_with("start a thread: "));
    REQUIRE_FALSE((*stream)->stats().waiting_for_credentials);
  }
  REQUIRE(run_until(io, [&] { return done.has_value(); }));
  REQUIRE(done == Stream::Outcome::acknowledged);
  REQUIRE((*stream)->stats().healthy);
}

}  // namespace
}  // namespace kvmscope::exporters
