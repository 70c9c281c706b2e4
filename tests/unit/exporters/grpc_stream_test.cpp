// SPDX-License-Identifier: Apache-2.0
#include <fcntl.h>
#include <grpcpp/security/server_credentials.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>

#include "exporters/grpc_stream.h"
#include "exporters/proto/rpc_status.pb.h"
#include "tests/support/catch.h"
#include "tests/unit/exporters/receiver.h"

namespace kvmscope::exporters {
namespace {

using namespace std::chrono_literals;
using Outcome = Stream::Outcome;
using grpc::StatusCode;

StreamConfig plain(const Receiver& receiver) {
  StreamConfig config;
  config.kind = StreamConfig::Kind::otlp_grpc;
  config.endpoint = receiver.endpoint();
  config.tls = false;
  config.backoff_min = 20ms;
  config.backoff_max = 100ms;
  return config;
}

StreamConfig secure(const Receiver& receiver, const Authority& authority) {
  StreamConfig config = plain(receiver);
  config.tls = true;
  config.ca_file = authority.file();
  return config;
}

/// A stream of tenant `blue`, and what became of its batches.
struct Fixture {
  explicit Fixture(const StreamConfig& config) {
    auto made = Stream::make(io.get_executor(), core::TenantId{"blue"}, config);
    REQUIRE(made.has_value());
    stream = std::move(*made);
  }
  void submit(const std::string& value, Signal signal = Signal::metrics, std::size_t padding = 0) {
    stream->submit(batch("blue", value, signal, padding),
                   [this, value](Outcome outcome) { done.emplace_back(value, outcome); });
  }
  bool wait_done(std::size_t count) {
    return run_until(io, [&] { return done.size() >= count; });
  }
  boost::asio::io_context io;
  std::vector<std::pair<std::string, Outcome>> done;
  std::unique_ptr<Stream> stream;
};

std::string retry_info(std::chrono::milliseconds delay) {
  rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(delay.count() / 1000);
  info.mutable_retry_delay()->set_nanos(static_cast<int>(delay.count() % 1000) * 1'000'000);
  rpc::Status status;
  auto& detail = *status.add_details();
  detail.set_type_url("type.googleapis.com/google.rpc.RetryInfo");
  detail.set_value(info.SerializeAsString());
  return status.SerializeAsString();
}

/// Gives the answer once, then accepts.
Receiver::Behaviour once(const Receiver::Answer& answer) {
  return [answer, first = true](const Seen&) mutable {
    return std::exchange(first, false) ? answer : Receiver::Answer{};
  };
}

TEST_CASE("metrics and logs arrive, compressed or not, with the configured headers") {
  Receiver receiver;
  StreamConfig config = plain(receiver);
  config.gzip = GENERATE(true, false);
  config.headers = {{"x-tenant-id", "blue"}, {"x-scope", "a b"}};
  Fixture f(config);
  f.submit("one", Signal::metrics, 5000);
  f.submit("two", Signal::logs);
  REQUIRE(f.wait_done(2));
  for (const auto& [value, outcome] : f.done) REQUIRE(outcome == Outcome::acknowledged);
  for (const Seen& seen : receiver.seen()) {
    REQUIRE(seen.values == std::vector<std::string>{seen.signal == Signal::metrics ? "one" : "two"});
    REQUIRE(seen.metadata.find("x-tenant-id")->second == "blue");
    REQUIRE(seen.metadata.find("x-scope")->second == "a b");
    REQUIRE(seen.metadata.find("user-agent")->second.starts_with("kvmscope/"));
    REQUIRE(seen.metadata.count("authorization") == 0);
  }
  const StreamStats stats = f.stream->stats();
  REQUIRE(stats.sent_items == 4);
  REQUIRE(stats.sent_requests == 2);
  REQUIRE(stats.failed_requests == 0);
  REQUIRE(stats.queued_batches == 0);
  REQUIRE(stats.queued_bytes == 0);
  REQUIRE(stats.healthy);
  REQUIRE(stats.last_error.empty());
}

TEST_CASE("every status code is retried or not as OTLP says") {
  enum class What { retried, dropped, held };
  const std::map<StatusCode, What> table = {
      {StatusCode::CANCELLED, What::retried},
      {StatusCode::UNKNOWN, What::dropped},
      {StatusCode::INVALID_ARGUMENT, What::dropped},
      {StatusCode::DEADLINE_EXCEEDED, What::retried},
      {StatusCode::NOT_FOUND, What::dropped},
      {StatusCode::ALREADY_EXISTS, What::dropped},
      {StatusCode::PERMISSION_DENIED, What::held},
      {StatusCode::RESOURCE_EXHAUSTED, What::dropped},
      {StatusCode::FAILED_PRECONDITION, What::dropped},
      {StatusCode::ABORTED, What::retried},
      {StatusCode::OUT_OF_RANGE, What::retried},
      {StatusCode::UNIMPLEMENTED, What::dropped},
      {StatusCode::INTERNAL, What::dropped},
      {StatusCode::UNAVAILABLE, What::retried},
      {StatusCode::DATA_LOSS, What::retried},
      {StatusCode::UNAUTHENTICATED, What::held},
  };
  REQUIRE(table.size() == 16);
  Receiver receiver;
  for (const auto& [code, what] : table) {
    INFO("status code " << code);
    receiver.behave(once({grpc::Status(code, "no"), 0, {}, 0ms}));
    Fixture f(plain(receiver));
    const std::size_t before = receiver.seen().size();
    f.submit("a");
    if (what == What::held) {
      REQUIRE(run_until(f.io, [&] { return f.stream->stats().auth_failures == 1; }));
      const StreamStats stats = f.stream->stats();
      REQUIRE(f.done.empty());
      REQUIRE(stats.waiting_for_credentials);
      REQUIRE_FALSE(stats.healthy);
      REQUIRE(stats.queued_batches == 1);
      REQUIRE(stats.dropped_items_permanent == 0);
      continue;
    }
    REQUIRE(f.wait_done(1));
    const StreamStats stats = f.stream->stats();
    const bool retried = what == What::retried;
    REQUIRE(f.done[0].second == (retried ? Outcome::acknowledged : Outcome::refused));
    REQUIRE(receiver.seen().size() - before == (retried ? 2 : 1));
    REQUIRE(stats.failed_requests == 1);
    REQUIRE(stats.retried_requests == (retried ? 1 : 0));
    REQUIRE(stats.dropped_items_permanent == (retried ? 0 : 2));
    REQUIRE(stats.sent_items == (retried ? 2 : 0));
    REQUIRE(stats.healthy == retried);
    REQUIRE(stats.last_error.empty() == retried);
  }
}

TEST_CASE("RESOURCE_EXHAUSTED with RetryInfo is retried, not before the delay it asks for") {
  Receiver receiver;
  receiver.behave(
      once({grpc::Status(StatusCode::RESOURCE_EXHAUSTED, "slow down", retry_info(500ms)), 0, {}, 0ms}));
  Fixture f(plain(receiver));
  const auto begin = std::chrono::steady_clock::now();
  f.submit("a");
  REQUIRE(f.wait_done(1));
  REQUIRE(std::chrono::steady_clock::now() - begin >= 500ms);
  REQUIRE(f.done[0].second == Outcome::acknowledged);
  REQUIRE(f.stream->stats().retried_requests == 1);
}

TEST_CASE("a receiver cannot ask for an eternity") {
  Receiver receiver;
  receiver.behave(
      once({grpc::Status(StatusCode::UNAVAILABLE, "later", retry_info(std::chrono::hours(5))), 0, {}, 0ms}));
  Fixture f(plain(receiver));
  f.submit("a");
  REQUIRE(f.wait_done(1));  // ten times backoff_max: a second
}

TEST_CASE("partial success is counted and never sent again") {
  Receiver receiver;
  receiver.behave([](const Seen&) { return Receiver::Answer{{}, 1, "no room", 0ms}; });
  Fixture f(plain(receiver));
  f.submit("a");
  f.submit("b", Signal::logs);
  REQUIRE(f.wait_done(2));
  run_for(f.io, 200ms);
  REQUIRE(receiver.seen().size() == 2);
  const StreamStats stats = f.stream->stats();
  REQUIRE(stats.rejected_items == 2);
  REQUIRE(stats.sent_items == 2);
  REQUIRE(stats.sent_requests == 2);
  REQUIRE(stats.retried_requests == 0);
  REQUIRE(stats.healthy);

  receiver.behave([](const Seen&) { return Receiver::Answer{{}, 0, "deprecated", 0ms}; });
  f.submit("c");
  REQUIRE(f.wait_done(3));
  REQUIRE(f.stream->stats().rejected_items == 2);
  REQUIRE(f.stream->stats().last_error == "the receiver warns: deprecated");
}

TEST_CASE("a receiver that rejects more than it was sent is not believed") {
  Receiver receiver;
  receiver.behave([](const Seen&) { return Receiver::Answer{{}, 1'000'000, "all", 0ms}; });
  Fixture f(plain(receiver));
  f.submit("a");
  REQUIRE(f.wait_done(1));
  REQUIRE(f.stream->stats().rejected_items == 2);
  REQUIRE(f.stream->stats().sent_items == 0);
}

TEST_CASE("the token is sent; a wrong one holds the data until the file changes; nothing is lost or shown") {
  const TempDir dir;
  Receiver receiver;
  receiver.behave(demand("right-secret"));
  StreamConfig config = plain(receiver);
  config.token_file = dir.write("token", "wrong-secret\n");
  config.backoff_max = 60s;  // no probe in this test
  Fixture f(config);
  for (const char* value : {"a", "b", "c"}) f.submit(value);
  REQUIRE(run_until(f.io, [&] { return f.stream->stats().auth_failures == 1; }));
  run_for(f.io, 1500ms);
  StreamStats stats = f.stream->stats();
  REQUIRE(receiver.seen().size() == 1);  // held, not hammered
  REQUIRE(stats.waiting_for_credentials);
  REQUIRE_FALSE(stats.healthy);
  REQUIRE(stats.queued_batches == 3);
  REQUIRE(stats.oldest_queued_ns > 1'000'000'000);
  REQUIRE(stats.last_error == "UNAUTHENTICATED: bad credential: Bearer ***");

  dir.write("token", "right-secret\n");  // in place
  REQUIRE(f.wait_done(3));
  const std::vector<std::pair<std::string, Outcome>> expected = {
      {"a", Outcome::acknowledged}, {"b", Outcome::acknowledged}, {"c", Outcome::acknowledged}};
  REQUIRE(f.done == expected);
  stats = f.stream->stats();
  REQUIRE(stats.healthy);
  REQUIRE_FALSE(stats.waiting_for_credentials);
  REQUIRE(stats.auth_failures == 1);
  REQUIRE(stats.last_error.empty());

  receiver.behave(demand("third-secret"));  // rotated while it works, by rename
  dir.write("token.new", "third-secret");
  REQUIRE(::rename(dir.file("token.new").c_str(), config.token_file.c_str()) == 0);
  f.submit("d");
  REQUIRE(f.wait_done(4));
  REQUIRE(f.stream->stats().auth_failures == 1);
}

TEST_CASE("a token that the receiver learns only later is offered again by a probe") {
  const TempDir dir;
  Receiver receiver;
  receiver.behave(demand("other"));
  StreamConfig config = plain(receiver);
  config.token_file = dir.write("token", "early-token");
  config.backoff_max = 30ms;
  Fixture f(config);
  f.submit("a");
  REQUIRE(run_until(f.io, [&] { return f.stream->stats().auth_failures >= 2; }));
  receiver.behave(demand("early-token"));
  REQUIRE(f.wait_done(1));
  REQUIRE(f.done[0].second == Outcome::acknowledged);
}

TEST_CASE("metrics flow though logs are not permitted") {
  Receiver receiver;
  receiver.behave([](const Seen& seen) {
    Receiver::Answer answer;
    if (seen.signal == Signal::logs) answer.status = {StatusCode::PERMISSION_DENIED, "no logs"};
    return answer;
  });
  Fixture f(plain(receiver));
  f.submit("log", Signal::logs);
  REQUIRE(run_until(f.io, [&] { return f.stream->stats().auth_failures == 1; }));
  f.submit("metric");
  REQUIRE(f.wait_done(1));
  REQUIRE(f.done[0].first == "metric");
  REQUIRE(f.stream->stats().waiting_for_credentials);
  REQUIRE_FALSE(f.stream->stats().healthy);
}

TEST_CASE("a stream whose credential is missing or bad waits for it, and says why") {
  struct Row {
    std::function<void(const TempDir&)> prepare;
    std::string error;
  };
  const std::vector<Row> rows = {
      {[](const TempDir&) {}, "No such file"},
      {[](const TempDir& dir) { dir.write("token", "\n"); }, "empty"},
      {[](const TempDir& dir) { dir.write("token", "two\nlines"); }, "visible ASCII"},
      {[](const TempDir& dir) { dir.write("token", "tab\there"); }, "visible ASCII"},
      {[](const TempDir& dir) { dir.write("token", std::string("nul\0byte", 8)); }, "visible ASCII"},
      {[](const TempDir& dir) { dir.write("token", std::string((64 << 10) + 1, 'x')); }, "64 KiB"},
      {[](const TempDir& dir) { REQUIRE(::chmod(dir.write("token", "x").c_str(), 0604) == 0); }, "chmod o="},
      {[](const TempDir& dir) { REQUIRE(::mkfifo(dir.file("token").c_str(), 0600) == 0); }, "regular"},
  };
  Receiver receiver;
  receiver.behave(demand("good-token"));
  for (const Row& row : rows) {
    const TempDir dir;
    row.prepare(dir);
    StreamConfig config = plain(receiver);
    config.token_file = dir.file("token");
    Fixture f(config);
    f.submit("a");
    REQUIRE(run_until(f.io, [&] { return f.stream->stats().waiting_for_credentials; }));
    const StreamStats stats = f.stream->stats();
    INFO(stats.last_error);
    REQUIRE_FALSE(stats.healthy);
    REQUIRE(stats.auth_failures == 0);
    REQUIRE(stats.last_error.find(row.error) != std::string::npos);
    REQUIRE(stats.last_error.find("lines") == std::string::npos);
    ::unlink(config.token_file.c_str());
    dir.write("token", "good-token");
    REQUIRE(f.wait_done(1));
  }
}

TEST_CASE("a corrected mode is enough, and a file broken later leaves the token that works in force") {
  const TempDir dir;
  Receiver receiver;
  receiver.behave(demand("good-token"));
  StreamConfig config = plain(receiver);
  config.token_file = dir.write("token", "good-token");
  REQUIRE(::chmod(config.token_file.c_str(), 0644) == 0);
  Fixture f(config);
  f.submit("a");
  REQUIRE(run_until(f.io, [&] { return f.stream->stats().waiting_for_credentials; }));
  REQUIRE(::chmod(config.token_file.c_str(), 0640) == 0);
  REQUIRE(f.wait_done(1));
  dir.write("token", "");
  f.submit("b");
  REQUIRE(f.wait_done(2));
  REQUIRE(f.done[1].second == Outcome::acknowledged);
}

/// Reads like the real one, but hangs while it is told to: what a dead mount does.
struct HangingFiles {
  GrpcStream::ReadCredential reader() {
    return [this](const std::string& path, CredentialKind kind) {
      while (hang) ::usleep(1000);
      auto content = read_credential(path, kind);
      ++reads;
      return content;
    };
  }
  std::atomic<bool> hang = false;
  std::atomic<int> reads = 0;
};

TEST_CASE("a hanging mount of credentials delays no call, and the stream says why it waits") {
  const TempDir dir;
  Receiver receiver;
  receiver.behave(demand("good-token"));
  StreamConfig config = plain(receiver);
  config.token_file = dir.write("token", "good-token");
  HangingFiles files;
  files.hang = true;
  boost::asio::io_context io;
  GrpcStream stream(io.get_executor(), core::TenantId{"blue"}, config, nullptr, files.reader());
  int done = 0;
  const auto count = [&done](Outcome outcome) { done += outcome == Outcome::acknowledged ? 1 : 100; };
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 10; ++i) stream.submit(batch("blue", "a"), count);
  stream.submit(batch("blue", "log", Signal::logs), count);
  REQUIRE(std::chrono::steady_clock::now() - begin < 500ms);
  REQUIRE(run_until(io, [&] { return stream.stats().waiting_for_credentials; }));
  REQUIRE(stream.stats().last_error.find("does not answer") != std::string::npos);
  REQUIRE(receiver.seen().empty());
  files.hang = false;
  REQUIRE(run_until(io, [&] { return done == 11; }));
  REQUIRE(stream.stats().healthy);

  files.hang = true;  // what was read before does in the meantime
  stream.submit(batch("blue", "b"), count);
  REQUIRE(run_until(io, [&] { return done == 12; }));
  const int reads = files.reads;
  stream.submit(batch("blue", "c"), count);
  REQUIRE(run_until(io, [&] { return done == 13; }));
  REQUIRE(files.reads == reads);
  dir.write("token", "new-token");
  receiver.behave(demand("new-token"));
  files.hang = false;
  REQUIRE(run_until(io, [&] { return files.reads > reads; }));
  stream.submit(batch("blue", "d"), count);
  REQUIRE(run_until(io, [&] { return done == 14; }));
}

TEST_CASE("a stream is destroyed at once while its credentials' mount hangs") {
  const TempDir dir;
  Receiver receiver;
  StreamConfig config = plain(receiver);
  config.token_file = dir.write("token", "good-token");
  HangingFiles files;
  files.hang = true;
  {
    boost::asio::io_context io;
    GrpcStream stream(io.get_executor(), core::TenantId{"blue"}, config, nullptr, files.reader());
    stream.submit(batch("blue", "a"), nullptr);
    run_for(io, 20ms);
    const auto begin = std::chrono::steady_clock::now();
    stream.flush(50ms, [](const Undelivered&) {});
    run_for(io, 100ms);
    REQUIRE(std::chrono::steady_clock::now() - begin < 1s);
  }
  files.hang = false;
  while (files.reads == 0) ::usleep(1000);
}

TEST_CASE("a receiver that hangs is given up after the timeout, and the data kept") {
  Receiver receiver;
  receiver.behave(once({{}, 0, {}, 60s}));
  StreamConfig config = plain(receiver);
  config.timeout = 300ms;
  Fixture f(config);
  f.submit("a");
  REQUIRE(run_until(f.io, [&] { return f.stream->stats().failed_requests == 1; }));
  REQUIRE(f.stream->stats().last_error.starts_with("DEADLINE_EXCEEDED"));
  REQUIRE(f.wait_done(1));
  REQUIRE(f.done[0].second == Outcome::acknowledged);
  REQUIRE(receiver.peers().size() == 2);  // the second attempt did not trust the first one's connection
}

TEST_CASE("a receiver that goes away and comes back gets everything, in order") {
  auto receiver = std::make_unique<Receiver>();
  const int port = receiver->port();
  Fixture f(plain(*receiver));
  f.submit("a");
  REQUIRE(f.wait_done(1));
  receiver.reset();
  f.submit("b");
  f.submit("c");
  REQUIRE(run_until(f.io, [&] { return f.stream->stats().failed_requests >= 2; }));
  REQUIRE(f.stream->stats().last_error.starts_with("UNAVAILABLE"));
  REQUIRE(f.stream->stats().queued_batches == 2);
  Receiver again(Receiver::Options{.port = port});
  REQUIRE(f.wait_done(3));
  REQUIRE(f.done.back() == std::pair<std::string, Outcome>("c", Outcome::acknowledged));
  const auto seen = again.seen();
  REQUIRE(seen.size() == 2);
  REQUIRE(seen[0].values[0] == "b");
  REQUIRE(seen[1].values[0] == "c");
}

TEST_CASE("a receiver that dies with the request in its hands gets it again") {
  auto receiver = std::make_unique<Receiver>();
  const int port = receiver->port();
  receiver->behave([](const Seen&) { return Receiver::Answer{{}, 0, {}, 60s}; });
  Fixture f(plain(*receiver));
  f.submit("a");
  REQUIRE(run_until(f.io, [&] { return !receiver->seen().empty(); }));
  receiver.reset();
  Receiver again(Receiver::Options{.port = port});
  REQUIRE(f.wait_done(1));
  REQUIRE(f.done[0].second == Outcome::acknowledged);
}

TEST_CASE("two streams to one address are two connections, and one that hangs does not delay the other") {
  Receiver receiver;
  receiver.behave([](const Seen& seen) {
    return Receiver::Answer{{}, 0, {}, seen.values[0] == "slow" ? 60'000ms : 0ms};
  });
  Fixture slow(plain(receiver));
  Fixture quick(plain(receiver));
  slow.submit("slow");
  REQUIRE(run_until(slow.io, [&] { return receiver.seen().size() == 1; }));
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 5; ++i) quick.submit("quick");
  REQUIRE(quick.wait_done(5));
  REQUIRE(std::chrono::steady_clock::now() - begin < 5s);
  REQUIRE(slow.done.empty());
  REQUIRE(receiver.peers().size() == 2);
}

TEST_CASE("a lane has one request in flight, and another signal does not wait for it") {
  Receiver receiver;
  receiver.behave([](const Seen& seen) {
    return Receiver::Answer{{}, 0, {}, seen.signal == Signal::metrics ? 60'000ms : 0ms};
  });
  Fixture f(plain(receiver));
  f.submit("a");
  f.submit("b");
  f.submit("log", Signal::logs);
  REQUIRE(f.wait_done(1));
  REQUIRE(f.done[0].first == "log");
  run_for(f.io, 100ms);
  REQUIRE(receiver.seen().size() == 2);
}

TEST_CASE("after failures in a row attempts come at most every backoff_max") {
  Receiver receiver;
  receiver.behave(
      [](const Seen&) { return Receiver::Answer{{StatusCode::UNAVAILABLE, "down"}, 0, {}, 0ms}; });
  StreamConfig config = plain(receiver);
  config.backoff_min = 1ms;
  config.backoff_max = 400ms;
  Fixture f(config);
  f.submit("a");
  REQUIRE(run_until(f.io, [&] { return receiver.seen().size() >= 6; }));
  const std::size_t before = receiver.seen().size();
  run_for(f.io, 1000ms);
  REQUIRE(receiver.seen().size() - before <= 3);
  REQUIRE(receiver.seen().size() - before >= 1);
}

TEST_CASE("a full queue drops the oldest, in order, and never what is in flight") {
  Receiver receiver;
  std::atomic<bool> open = false;
  receiver.behave([&](const Seen&) {
    for (int i = 0; i < 2000 && !open; ++i) ::usleep(5000);
    return Receiver::Answer{};
  });
  StreamConfig config = plain(receiver);
  const std::size_t size = batch("blue", "0", Signal::metrics, 1000).size_bytes();
  config.queue_bytes = 2 * size;
  Fixture f(config);
  for (const char* value : {"0", "1", "2", "3", "4"}) f.submit(value, Signal::metrics, 1000);
  run_for(f.io, 50ms);
  REQUIRE(f.done.empty());  // 1 and 2 are dropped, but 0 comes first
  REQUIRE(f.stream->stats().dropped_items_queue == 4);
  REQUIRE(f.stream->stats().queued_batches == 3);
  REQUIRE(f.stream->stats().queued_bytes == 3 * size);
  open = true;
  REQUIRE(f.wait_done(5));
  const std::vector<std::pair<std::string, Outcome>> expected = {{"0", Outcome::acknowledged},
                                                                 {"1", Outcome::dropped},
                                                                 {"2", Outcome::dropped},
                                                                 {"3", Outcome::acknowledged},
                                                                 {"4", Outcome::acknowledged}};
  REQUIRE(f.done == expected);
  REQUIRE(f.stream->stats().sent_items == 6);
}

TEST_CASE("a large batch is sent in several requests") {
  Receiver receiver;
  StreamConfig config = plain(receiver);
  config.max_request_bytes = 3000;
  Fixture f(config);
  Batch large(core::TenantId{"blue"}, Signal::metrics);
  for (int i = 0; i < 5; ++i) {
    large.add({{{"vm.id", std::to_string(i)}, {"padding", std::string(1000, 'x')}}},
              std::make_shared<const std::string>(), 1);
  }
  std::vector<Outcome> done;
  f.stream->submit(std::move(large), [&](Outcome outcome) { done.push_back(outcome); });
  REQUIRE(run_until(f.io, [&] { return !done.empty(); }));
  run_for(f.io, 50ms);
  REQUIRE(done == std::vector<Outcome>{Outcome::acknowledged});
  std::vector<std::string> values;
  for (const Seen& seen : receiver.seen())
    values.insert(values.end(), seen.values.begin(), seen.values.end());
  REQUIRE(values == std::vector<std::string>{"0", "1", "2", "3", "4"});
  REQUIRE(receiver.seen().size() == 3);
  REQUIRE(f.stream->stats().sent_items == 5);
}

TEST_CASE("another tenant's batch is refused and no byte of it sent; an empty one is done at once") {
  Receiver receiver;
  Fixture f(plain(receiver));
  std::vector<Outcome> done;
  f.stream->submit(batch("green", "theirs"), [&](Outcome outcome) { done.push_back(outcome); });
  f.stream->submit(Batch(core::TenantId{"blue"}, Signal::metrics),
                   [&](Outcome outcome) { done.push_back(outcome); });
  REQUIRE(done.empty());  // never from within submit()
  REQUIRE(run_until(f.io, [&] { return done.size() == 2; }));
  run_for(f.io, 100ms);
  REQUIRE(done == std::vector<Outcome>{Outcome::dropped, Outcome::acknowledged});
  REQUIRE(receiver.seen().empty());
  REQUIRE(f.stream->stats().refused_batches == 1);
  REQUIRE(f.stream->stats().queued_batches == 0);
}

TEST_CASE("flush tries at once what waits, and ends when all is sent or time is up") {
  Receiver receiver;
  receiver.behave(once({{StatusCode::UNAVAILABLE, "not yet"}, 0, {}, 0ms}));
  StreamConfig config = plain(receiver);
  config.backoff_min = 60s;
  config.backoff_max = 60s;
  Fixture f(config);
  int idle = 0;
  f.stream->flush(10s, [&](const Undelivered& what) { idle += what == Undelivered() ? 1 : 100; });
  REQUIRE(idle == 0);
  REQUIRE(run_until(f.io, [&] { return idle == 1; }));  // nothing is queued
  f.submit("a");
  REQUIRE(run_until(f.io, [&] { return f.stream->stats().failed_requests == 1; }));
  std::size_t done_before = 99;
  f.stream->flush(10s, [&](const Undelivered&) {
    done_before = f.done.size();
    ++idle;
  });
  REQUIRE(run_until(f.io, [&] { return idle == 2; }));
  REQUIRE(done_before == 1);

  receiver.behave([](const Seen&) { return Receiver::Answer{{}, 0, {}, 60s}; });
  f.submit("b");
  const auto begin = std::chrono::steady_clock::now();
  f.stream->flush(200ms, [&](const Undelivered& what) { idle += what.newest ? 1 : 100; });
  REQUIRE(run_until(f.io, [&] { return idle == 3; }));
  REQUIRE(std::chrono::steady_clock::now() - begin >= 200ms);
  REQUIRE(f.stream->stats().queued_batches == 1);
}

TEST_CASE("a stream is destroyed at once with calls in flight, and nobody is called afterwards") {
  Receiver receiver;
  receiver.behave([](const Seen&) { return Receiver::Answer{{}, 0, {}, 60s}; });
  int called = 0;
  for (int round = 0; round < 20; ++round) {
    auto io = std::make_unique<boost::asio::io_context>();
    auto made = Stream::make(io->get_executor(), core::TenantId{"blue"}, plain(receiver));
    REQUIRE(made.has_value());
    (*made)->submit(batch("blue", "a"), [&](Outcome) { ++called; });
    (*made)->submit(batch("blue", "b", Signal::logs), [&](Outcome) { ++called; });
    (*made)->flush(1ms, [&](const Undelivered&) { ++called; });
    if (round % 2 == 0) {  // else the call has not even begun
      const std::size_t seen = receiver.seen().size();
      REQUIRE(run_until(*io, [&] { return receiver.seen().size() >= seen + 1; }));
    }
    called = 0;
    const auto begin = std::chrono::steady_clock::now();
    made->reset();
    REQUIRE(std::chrono::steady_clock::now() - begin < 1s);
    if (round % 4 < 2) io->run_for(5ms);
    io.reset();  // gRPC's threads may call back after this
  }
  ::usleep(100'000);
  REQUIRE(called == 0);
}

TEST_CASE("TLS: the right authority is trusted, a wrong one is not, and a right one in its place heals it") {
  const TempDir dir;
  const Authority good(dir, "good");
  const Authority evil(dir, "evil");
  Receiver receiver(Receiver::Options{.credentials = tls(good.issue("server"))});
  receiver.behave(demand("over-tls"));
  StreamConfig config = secure(receiver, good);
  config.token_file = dir.write("token", "over-tls");
  Fixture f(config);
  f.submit("a");
  REQUIRE(f.wait_done(1));
  REQUIRE(f.done[0].second == Outcome::acknowledged);

  config.ca_file = dir.write("ca.pem", slurp(evil.file()));
  Fixture wrong(config);
  wrong.submit("b");
  REQUIRE(run_until(wrong.io, [&] { return wrong.stream->stats().failed_requests >= 2; }));
  REQUIRE(wrong.done.empty());
  REQUIRE_FALSE(wrong.stream->stats().healthy);
  REQUIRE(receiver.seen().size() == 1);
  dir.write("ca.pem", slurp(good.file()));
  REQUIRE(wrong.wait_done(1));
}

TEST_CASE("TLS: the certificate must carry the name that is asked for") {
  const TempDir dir;
  const Authority authority(dir, "ca");
  Receiver receiver(Receiver::Options{.credentials = tls(authority.issue("server"))});
  StreamConfig config = secure(receiver, authority);
  config.server_name = "collector.example";
  Fixture named(config);
  named.submit("a");
  REQUIRE(named.wait_done(1));
  config.server_name = "other.example";
  Fixture other(config);
  other.submit("b");
  REQUIRE(run_until(other.io, [&] { return other.stream->stats().failed_requests >= 2; }));
  REQUIRE(receiver.seen().size() == 1);
}

TEST_CASE("mTLS: a client without a certificate is refused, one with it passes, and a renewed one is used") {
  const TempDir dir;
  const Authority authority(dir, "ca");
  const Authority next(dir, "next");
  const auto server = authority.issue("server");
  const auto client = authority.issue("client");
  auto receiver = std::make_unique<Receiver>(Receiver::Options{.credentials = tls(server, authority.file())});
  const int port = receiver->port();
  StreamConfig config = secure(*receiver, authority);
  Fixture without(config);
  without.submit("a");
  REQUIRE(run_until(without.io, [&] { return without.stream->stats().failed_requests >= 2; }));
  REQUIRE(receiver->seen().empty());

  config.cert_file = dir.write("own.pem", slurp(client.cert_file));
  config.key_file = dir.write("own.key", slurp(client.key_file));
  Fixture with(config);
  with.submit("b");
  REQUIRE(with.wait_done(1));
  REQUIRE(with.done[0].second == Outcome::acknowledged);

  // The receiver now trusts another authority's clients only: certificate and key change one after the other.
  receiver.reset();
  receiver =
      std::make_unique<Receiver>(Receiver::Options{.credentials = tls(server, next.file()), .port = port});
  with.submit("c");
  REQUIRE(run_until(with.io, [&] { return with.stream->stats().failed_requests >= 2; }));
  const auto renewed = next.issue("renewed");
  dir.write("own.pem", slurp(renewed.cert_file));
  run_for(with.io, 300ms);
  dir.write("own.key", slurp(renewed.key_file));
  REQUIRE(with.wait_done(2));
  REQUIRE(with.done[1] == std::pair<std::string, Outcome>("c", Outcome::acknowledged));
}

TEST_CASE("a certificate that changes on a working connection makes a new one") {
  const TempDir dir;
  const Authority authority(dir, "ca");
  const auto client = authority.issue("client");
  const auto renewed = authority.issue("renewed");
  Receiver receiver(Receiver::Options{.credentials = tls(authority.issue("server"), authority.file())});
  StreamConfig config = secure(receiver, authority);
  config.cert_file = dir.write("own.pem", slurp(client.cert_file));
  config.key_file = dir.write("own.key", slurp(client.key_file));
  Fixture f(config);
  f.submit("a");
  REQUIRE(f.wait_done(1));
  f.submit("b");
  REQUIRE(f.wait_done(2));
  REQUIRE(receiver.peers().size() == 1);
  dir.write("own.pem", slurp(renewed.cert_file));
  dir.write("own.key", slurp(renewed.key_file));
  f.submit("c");
  REQUIRE(f.wait_done(3));
  REQUIRE(f.done[2].second == Outcome::acknowledged);
  REQUIRE(receiver.peers().size() == 2);
}

}  // namespace
}  // namespace kvmscope::exporters
