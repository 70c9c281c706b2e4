// SPDX-License-Identifier: Apache-2.0
#include "exporters/queued_stream.h"

#include <boost/asio/io_context.hpp>
#include <thread>

#include "tests/support/catch.h"
#include "tests/unit/exporters/receiver.h"

namespace kvmscope::exporters {
namespace {

using namespace std::chrono_literals;
using Outcome = Stream::Outcome;
using Verdict = Attempt::Verdict;

/// Attempts that the test answers itself.
class FakeStream final : public QueuedStream {
 public:
  FakeStream(boost::asio::any_io_executor executor, StreamConfig config,
             std::shared_ptr<QueueBudget> budget = nullptr)
      : QueuedStream(std::move(executor), core::TenantId{"blue"}, std::move(config), std::move(budget)) {}

  struct Request {
    Signal signal;
    std::vector<std::string> values;  ///< `vm.id` of each resource
  };
  std::vector<Request> requests;
  std::optional<core::Error> no_start;

  void answer(Verdict verdict, Signal signal = Signal::metrics) {
    finished(signal, {verdict, verdict == Verdict::ok ? "" : "the test says so", 0, std::nullopt});
  }

 private:
  core::Result<void> start(Signal signal, const Bytes& request) override {
    if (no_start) return core::fail(*no_start);
    Request& out = requests.emplace_back(Request{signal, {}});
    if (signal == Signal::metrics) {
      opentelemetry::proto::collector::metrics::v1::ExportMetricsServiceRequest message;
      REQUIRE(message.ParseFromString(*request));
      for (const auto& one : message.resource_metrics()) {
        out.values.push_back(one.resource().attributes(0).value().string_value());
      }
    } else {
      opentelemetry::proto::collector::logs::v1::ExportLogsServiceRequest message;
      REQUIRE(message.ParseFromString(*request));
      for (const auto& one : message.resource_logs()) {
        out.values.push_back(one.resource().attributes(0).value().string_value());
      }
    }
    return {};
  }
};

StreamConfig patient() {
  StreamConfig config;
  config.backoff_min = 60s;
  config.backoff_max = 60s;
  return config;
}

struct Fixture {
  explicit Fixture(const StreamConfig& config = patient(), std::shared_ptr<QueueBudget> budget = nullptr)
      : stream(io.get_executor(), config, std::move(budget)) {}

  /// One resource named `value` with two points; `finals` add the last values of one VM each.
  void submit(const std::string& value, std::size_t padding = 0, const std::vector<std::string>& finals = {},
              Signal signal = Signal::metrics) {
    Batch made = batch("blue", value, signal, padding);
    for (const std::string& vm : finals) {
      made.add({{{"vm.id", vm}}}, std::make_shared<const std::string>(), 1, Values::last);
    }
    stream.submit(std::move(made), [this, value](Outcome outcome) { done[value] = outcome; });
  }
  void submit_log(const std::string& value, std::size_t padding = 0) {
    submit(value, padding, {}, Signal::logs);
  }
  void settle() {
    io.restart();
    io.poll();
  }
  /// Answers all that comes with success, and returns what was sent from now on, request by request.
  std::vector<std::vector<std::string>> send_all() {
    std::vector<std::vector<std::string>> out;
    for (std::size_t next = stream.requests.size() - 1; next < stream.requests.size(); ++next) {
      out.push_back(stream.requests[next].values);
      stream.answer(Verdict::ok, stream.requests[next].signal);
      settle();
    }
    return out;
  }
  void flush(std::chrono::milliseconds deadline = 10s) {
    stream.flush(deadline, [this](const Undelivered& what) { undelivered = what; });
  }

  boost::asio::io_context io;
  FakeStream stream;
  std::map<std::string, Outcome> done;
  std::optional<Undelivered> undelivered;
};

using Requests = std::vector<std::vector<std::string>>;
constexpr std::size_t kLarge = 600'000;  ///< too large to share a request

// --- a clean stop

TEST_CASE("a stop sends the newest state first, then last values, then the rest from new to old") {
  Fixture f;
  for (int i = 0; i < 8; ++i) {
    f.submit(std::to_string(i), kLarge,
             i == 2 || i == 4 ? std::vector{"ended" + std::to_string(i)} : std::vector<std::string>());
  }
  f.stream.answer(Verdict::retry);  // the receiver was away
  f.flush();
  const Requests expected = {{"7"}, {"4", "ended4"}, {"2", "ended2"}, {"6"}, {"5"}, {"3"}, {"1"}, {"0"}};
  REQUIRE(f.send_all() == expected);
  REQUIRE(f.done.size() == 8);
  REQUIRE(f.undelivered == Undelivered());
}

TEST_CASE("a batch of last values alone is no newer state") {
  Fixture f;
  const auto submit_last = [&f](const std::string& vm) {
    Batch made(core::TenantId{"blue"}, Signal::metrics);
    made.add({{{"vm.id", vm}, {"padding", std::string(kLarge, 'x')}}}, std::make_shared<const std::string>(),
             1, Values::last);
    f.stream.submit(std::move(made), nullptr);
  };
  submit_last("0");
  for (const char* value : {"1", "2", "3"}) f.submit(value, kLarge);
  submit_last("4");
  f.stream.answer(Verdict::retry);
  f.flush(50ms);
  REQUIRE(f.stream.requests.back().values[0] == "3");
  REQUIRE(run_until(f.io, [&] { return f.undelivered.has_value(); }));
  REQUIRE(f.undelivered->newest);
  REQUIRE(f.send_all() == Requests{{"3"}, {"0"}, {"1"}, {"2"}, {"4"}});
}

TEST_CASE("for want of room the newest state stays, though last values came after it") {
  const std::size_t size = batch("blue", "0", Signal::metrics, 10'000).size_bytes();
  StreamConfig config = patient();
  config.queue_bytes = 3 * size;
  Fixture f(config);
  for (const char* value : {"0", "1", "2"}) f.submit(value, 10'000);
  Batch made(core::TenantId{"blue"}, Signal::metrics);
  made.add({{{"vm.id", std::string("ended")}, {"padding", std::string(30'000, 'x')}}},
           std::make_shared<const std::string>(), 1, Values::last);
  f.stream.submit(std::move(made), nullptr);
  // Without 1, and without the last values, which their giver offers anew.
  REQUIRE(f.send_all() == Requests{{"0"}, {"2"}});
}

TEST_CASE("a batch that comes during a stop is the newest state") {
  Fixture f;
  for (const char* value : {"0", "1", "2"}) f.submit(value, kLarge);
  f.stream.answer(Verdict::retry);
  f.flush();
  f.submit("3", kLarge);
  REQUIRE(f.send_all() == Requests{{"2"}, {"3"}, {"1"}, {"0"}});
}

TEST_CASE("small batches share requests at a stop, the newest state goes alone, and all are told") {
  Fixture f;
  for (int i = 0; i < 1600; ++i) f.submit(std::to_string(i), 5'000, {"ended" + std::to_string(i)});
  f.stream.answer(Verdict::retry);
  f.flush();
  const Requests sent = f.send_all();
  REQUIRE(sent.front() == std::vector<std::string>{"1599", "ended1599"});
  REQUIRE(sent.size() <= 10);
  REQUIRE(sent.back()[0] == "0");  // the oldest first within a request
  REQUIRE(f.done.size() == 1600);
  for (const auto& [value, outcome] : f.done) REQUIRE(outcome == Outcome::acknowledged);
  REQUIRE(f.stream.stats().sent_items == 1600 * 3);
  REQUIRE(f.stream.stats().queued_bytes == 0);
}

TEST_CASE("a shared request that is refused is repeated one by one, and only the guilty batch is lost") {
  Fixture f;
  for (int i = 0; i < 5; ++i) f.submit(std::to_string(i), 0, {"ended" + std::to_string(i)});
  f.stream.answer(Verdict::retry);
  f.flush();
  f.stream.answer(Verdict::ok);  // 4
  f.settle();
  REQUIRE(f.stream.requests.back().values.size() == 8);
  f.stream.answer(Verdict::refused);
  f.settle();
  for (const char* value : {"3", "2", "1", "0"}) {
    REQUIRE(f.stream.requests.back().values[0] == value);
    f.stream.answer(value == std::string("2") ? Verdict::refused : Verdict::ok);
    f.settle();
  }
  REQUIRE(f.done["2"] == Outcome::refused);
  REQUIRE(f.done["1"] == Outcome::acknowledged);
  REQUIRE(f.undelivered ==
          Undelivered{.batches = 1, .points = 3, .records = 0, .finals = 1, .newest = false});
  REQUIRE(f.stream.stats().dropped_items_permanent == 3);
}

TEST_CASE("a stop keeps the order as long as the receiver is quick enough for all of it") {
  Fixture f;
  for (const char* value : {"0", "1", "2", "3"}) f.submit(value);
  f.stream.answer(Verdict::ok);
  f.settle();
  f.flush();
  REQUIRE(f.send_all() == Requests{{"1"}, {"2"}, {"3"}});
  REQUIRE(f.undelivered == Undelivered());

  Fixture slow;
  for (const char* value : {"0", "1", "2", "3"}) slow.submit(value, kLarge);
  std::this_thread::sleep_for(50ms);
  slow.stream.answer(Verdict::ok);
  slow.settle();
  slow.flush(200ms);
  std::this_thread::sleep_for(50ms);
  slow.stream.answer(Verdict::ok);  // two more of 50 ms do not fit into half of what is left
  slow.settle();
  REQUIRE(slow.send_all() == Requests{{"3"}, {"2"}});
}

TEST_CASE("log records keep their places at a stop") {
  Fixture f;
  for (const char* value : {"0", "1", "2"}) f.submit_log(value, kLarge);
  f.stream.answer(Verdict::retry, Signal::logs);
  f.flush();
  REQUIRE(f.send_all() == Requests{{"0"}, {"1"}, {"2"}});
  Fixture small;
  for (const char* value : {"0", "1", "2"}) small.submit_log(value);
  small.stream.answer(Verdict::retry, Signal::logs);
  small.flush();
  REQUIRE(small.send_all() == Requests{{"0", "1", "2"}});
}

TEST_CASE("what a stop could not deliver is told") {
  Fixture f;
  f.submit("0", kLarge, {"ended"});
  f.submit("1", kLarge);
  f.submit("2", kLarge, {"gone", "too"});
  f.submit_log("3");
  f.stream.answer(Verdict::retry);
  f.flush(50ms);
  f.stream.answer(Verdict::refused);  // the newest
  Batch made(core::TenantId{"blue"}, Signal::metrics);
  made.add({{{"vm.id", std::string("late")}}}, std::make_shared<const std::string>(), 1, Values::last);
  f.stream.submit(std::move(made), nullptr);  // no newer state
  REQUIRE(run_until(f.io, [&] { return f.undelivered.has_value(); }));
  REQUIRE(f.undelivered ==
          Undelivered{.batches = 5, .points = 10, .records = 2, .finals = 4, .newest = true});
}

TEST_CASE("after a stop that nobody followed through the order is what it was") {
  Fixture f;
  for (const char* value : {"0", "1", "2", "3"}) f.submit(value, kLarge);
  f.stream.answer(Verdict::retry);
  f.flush(50ms);
  f.stream.answer(Verdict::ok);  // 3
  f.settle();
  REQUIRE(run_until(f.io, [&] { return f.undelivered.has_value(); }));
  REQUIRE(f.send_all() == Requests{{"2"}, {"0"}, {"1"}});
}

TEST_CASE("superseded states that a stop could not deliver are told apart from the newest") {
  Fixture f;
  for (const char* value : {"0", "1"}) f.submit(value, kLarge);
  f.stream.answer(Verdict::retry);
  f.flush(50ms);
  f.stream.answer(Verdict::ok);
  REQUIRE(run_until(f.io, [&] { return f.undelivered.has_value(); }));
  REQUIRE(f.undelivered ==
          Undelivered{.batches = 1, .points = 2, .records = 0, .finals = 0, .newest = false});
}

TEST_CASE("a stop of a real receiver with a backlog delivers the newest state and every last value") {
  Receiver receiver;
  receiver.behave(
      [](const Seen&) { return Receiver::Answer{{grpc::StatusCode::UNAVAILABLE, "away"}, 0, {}, 0ms}; });
  StreamConfig config = patient();
  config.kind = StreamConfig::Kind::otlp_grpc;
  config.endpoint = receiver.endpoint();
  config.tls = false;
  boost::asio::io_context io;
  auto stream = Stream::make(io.get_executor(), core::TenantId{"blue"}, config);
  REQUIRE(stream.has_value());
  for (int i = 0; i < 400; ++i) {
    Batch made = batch("blue", std::to_string(i), Signal::metrics, 5000);
    if (i % 4 == 0) {
      made.add({{{"vm.id", "ended" + std::to_string(i)}}}, std::make_shared<const std::string>(), 1,
               Values::last);
    }
    (*stream)->submit(std::move(made), nullptr);
  }
  REQUIRE(run_until(io, [&] { return (*stream)->stats().failed_requests == 1; }));
  receiver.behave([](const Seen&) { return Receiver::Answer{{}, 0, {}, 100ms}; });
  std::optional<Undelivered> undelivered;
  (*stream)->flush(5s, [&](const Undelivered& what) { undelivered = what; });
  REQUIRE(run_until(io, [&] { return undelivered.has_value(); }));
  REQUIRE(undelivered == Undelivered());
  REQUIRE(receiver.seen()[1].values == std::vector<std::string>{"399"});
}

// --- room

TEST_CASE("for want of room superseded states go first, and last values never with them") {
  const std::size_t size = batch("blue", "0", Signal::metrics, 10'000).size_bytes();
  StreamConfig config = patient();
  config.queue_bytes = 5 * size;
  Fixture f(config);
  f.submit_log("2", 10'000);  // in flight, like 0
  f.submit("0", 10'000);
  f.submit("1", 10'000, {"ended"});
  f.submit("3", 10'000);
  f.submit("4", 10'000);
  f.submit("5", 10'000);
  REQUIRE(f.stream.stats().dropped_items_queue == 0);
  f.submit("6", 10'000);
  REQUIRE(f.stream.stats().dropped_items_queue == 2);  // 3: not 1, though it is older
  for (const char* value : {"7", "8", "9"}) f.submit(value, 10'000);
  REQUIRE(f.stream.stats().dropped_items_queue == 8);
  REQUIRE(f.send_all() == Requests{{"0"}, {"1", "ended"}, {"7"}, {"8"}, {"9"}});
}

TEST_CASE("what is left of a batch whose state is superseded are its last values; then records go") {
  const std::size_t size = batch("blue", "0", Signal::metrics, 10'000).size_bytes();
  StreamConfig config = patient();
  config.queue_bytes = 2 * size + size / 2;
  Fixture f(config);
  f.submit("0", 10'000);  // in flight
  f.submit("1", 10'000, {"ended", "gone"});
  f.submit_log("2", 10'000);  // in flight, another way
  f.submit_log("3", 10'000);
  f.submit("4", 10'000);
  REQUIRE(f.stream.stats().dropped_items_queue == 2);  // of 1
  f.submit_log("5", 10'000);
  REQUIRE(f.stream.stats().dropped_items_queue == 4);  // 3
  f.settle();
  REQUIRE(f.done.empty());
  REQUIRE(f.stream.stats().queued_batches == 5);
  f.stream.answer(Verdict::ok);
  f.settle();
  REQUIRE(f.stream.requests.back().values == std::vector<std::string>{"ended", "gone"});
  f.stream.answer(Verdict::ok);
  f.settle();
  REQUIRE(f.stream.requests.back().values == std::vector<std::string>{"4"});
  REQUIRE(f.done["1"] == Outcome::acknowledged);
  f.stream.answer(Verdict::ok, Signal::logs);
  f.settle();
  REQUIRE(f.done["3"] == Outcome::dropped);
  REQUIRE(f.stream.requests.back().values == std::vector<std::string>{"5"});
}

TEST_CASE("streams that share a budget: the longest queue gives, history only, and nobody below his share") {
  const std::size_t size = batch("blue", "0", Signal::metrics, 10'000).size_bytes();
  auto budget = std::make_shared<QueueBudget>(12 * size);
  Fixture small(patient(), budget);
  Fixture large(patient(), budget);
  Fixture third(patient(), budget);
  for (const char* value : {"0", "1", "2", "3"}) small.submit(value, 10'000);
  for (int i = 0; i < 30; ++i) {
    large.submit(std::to_string(i), 10'000,
                 i == 5 ? std::vector<std::string>{"ended"} : std::vector<std::string>());
  }
  for (const char* value : {"0", "1", "2"}) third.submit(value, 10'000);
  REQUIRE(small.stream.stats().dropped_items_queue == 0);
  REQUIRE(third.stream.stats().dropped_items_queue == 0);
  REQUIRE(large.stream.stats().dropped_items_queue > 0);
  REQUIRE(small.stream.stats().queued_bytes + large.stream.stats().queued_bytes +
              third.stream.stats().queued_bytes <=
          12 * size);
  const Requests sent = large.send_all();
  REQUIRE(sent.back() == std::vector<std::string>{"29"});
  REQUIRE(std::ranges::count(sent, std::vector<std::string>{"5", "ended"}) +
              std::ranges::count(sent, std::vector<std::string>{"ended"}) ==
          1);
}

/// Gives one byte at a time, if it has any to spare.
struct FakeQueue final : QueueBudget::Member {
  FakeQueue(std::size_t queued_size, std::size_t spare_size) : queued(queued_size), spare(spare_size) {}
  std::size_t queued_bytes() const override { return queued; }
  bool shed() override {
    if (spare == 0) return false;
    --spare;
    --queued;
    return true;
  }
  std::size_t queued;
  std::size_t spare;
};

TEST_CASE("a budget takes from the longest down to the next, and never from one within its fair share") {
  QueueBudget budget(100);
  FakeQueue a(60, 60);
  FakeQueue b(50, 50);
  FakeQueue c(20, 20);
  for (FakeQueue* queue : {&a, &b, &c}) budget.join(*queue);
  budget.enforce();
  REQUIRE(a.queued == 40);
  REQUIRE(b.queued == 40);
  REQUIRE(c.queued == 20);

  FakeQueue stubborn(200, 5);
  budget.join(stubborn);  // a fair share is 25 now
  budget.enforce();
  REQUIRE(stubborn.queued == 195);
  REQUIRE(a.queued == 25);
  REQUIRE(b.queued == 25);
  REQUIRE(c.queued == 20);

  budget.leave(stubborn);
  a.queued = 50;
  budget.enforce();
  REQUIRE(a.queued == 50);
}

TEST_CASE("a stream that ended has no part in the budget any more") {
  auto budget = std::make_shared<QueueBudget>(1);
  {
    Fixture gone(patient(), budget);
    gone.submit("0");
  }
  Fixture f(patient(), budget);
  f.submit("0");
  f.submit("1");
  REQUIRE(f.stream.stats().queued_batches == 2);  // in flight, and the newest state
  f.submit("2");
  REQUIRE(f.stream.stats().queued_batches == 2);
}

// --- other

TEST_CASE("an attempt that cannot even start is one that failed, and is made again") {
  StreamConfig config = patient();
  config.backoff_min = 10ms;
  config.backoff_max = 20ms;
  Fixture f(config);
  f.stream.no_start.emplace(core::ErrorCode::resource_exhausted, "start a thread: none left");
  f.submit("0");
  REQUIRE_FALSE(f.stream.stats().healthy);
  REQUIRE(f.stream.stats().last_error == "start a thread: none left");
  REQUIRE(f.stream.stats().failed_requests == 1);
  f.stream.no_start.reset();
  REQUIRE(run_until(f.io, [&] { return !f.stream.requests.empty(); }));
  f.stream.answer(Verdict::ok);
  f.settle();
  REQUIRE(f.done["0"] == Outcome::acknowledged);
  REQUIRE(f.stream.stats().healthy);
}

}  // namespace
}  // namespace kvmscope::exporters
