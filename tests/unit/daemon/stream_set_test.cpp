// SPDX-License-Identifier: Apache-2.0
#include "hostd/stream_set.h"

#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <cstdlib>
#include <filesystem>

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

using namespace std::chrono_literals;

class FakeClock final : public core::Clock {
 public:
  std::uint64_t unix_ns() const override { return 1'000'000'000'000 + monotonic_ns(); }
  std::uint64_t monotonic_ns() const override {
    return static_cast<std::uint64_t>(std::chrono::nanoseconds(now).count());
  }
  std::uint64_t boottime_ns() const override { return monotonic_ns(); }
  std::chrono::milliseconds now{1'000'000};
};

/// Streams into files; a tenant that is blocked has a directory in the way of its file.
struct Fixture {
  explicit Fixture(std::size_t all_queues_bytes = exporters::kAllQueuesBytes) {
    std::string pattern = (std::filesystem::temp_directory_path() / "kvmscope-streams-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    directory = pattern;
    config.default_stream.exporter = Exporter::file;
    config.default_stream.settings.path = directory + "/${tenant.id}.jsonl";
    config.default_stream.settings.backoff_min = 10ms;
    config.default_stream.settings.backoff_max = 20ms;
    config.operator_template = config.default_stream;
    config.operator_template.settings.path = directory + "/operator.jsonl";
    streams.emplace(
        io.get_executor(), config, clock, [](const std::string&, const core::Error&) {}, all_queues_bytes);
  }
  ~Fixture() {
    streams.reset();
    std::error_code ignored;
    std::filesystem::remove_all(directory, ignored);
  }
  Fixture(const Fixture&) = delete;
  Fixture& operator=(const Fixture&) = delete;

  void block(const core::TenantId& tenant) const {
    std::filesystem::create_directory(directory + "/" + tenant.value + ".jsonl");
  }
  void unblock(const core::TenantId& tenant) const {
    std::filesystem::remove(directory + "/" + tenant.value + ".jsonl");
  }
  void submit(const core::TenantId& tenant, std::size_t bytes = 0,
              exporters::Values values = exporters::Values::repeated) {
    exporters::Batch batch(tenant, exporters::Signal::metrics);
    batch.add({{{"vm.id", std::string(bytes, 'x')}}}, std::make_shared<const std::string>(), 1, values);
    streams->get(tenant)->submit(std::move(batch), nullptr);
  }
  exporters::StreamStats stats(const core::TenantId& tenant) const {
    return streams->entries().at(tenant).stats();
  }
  bool run_until(const std::function<bool()>& condition) {
    for (const auto end = std::chrono::steady_clock::now() + 10s; !condition();) {
      if (std::chrono::steady_clock::now() > end) return false;
      io.restart();
      io.run_for(2ms);
    }
    return true;
  }

  std::string directory;
  Config config;
  FakeClock clock;
  boost::asio::io_context io;
  std::optional<StreamSet> streams;
};

const core::TenantId kBlue{"blue"};
const core::TenantId kGreen{"green"};

TEST_CASE("a tenant without VMs is forgotten after a while, one with data waiting or the operator never") {
  Fixture f;
  f.block(kGreen);
  for (const core::TenantId& tenant : {kBlue, kGreen, kOperator}) f.submit(tenant);
  REQUIRE(f.run_until([&] { return f.stats(kBlue).sent_items == 1; }));
  const std::uint64_t since = f.streams->entries().at(kBlue).since_unix_ns;
  REQUIRE(since == f.clock.unix_ns());

  f.streams->retire_except({});
  REQUIRE(f.streams->entries().at(kBlue).stream != nullptr);  // its last word is still on its way
  f.clock.now += 10s;
  f.streams->retire_except({});
  REQUIRE(f.streams->entries().at(kBlue).stream == nullptr);
  REQUIRE(f.stats(kBlue).sent_items == 1);
  REQUIRE(f.streams->entries().at(kGreen).stream != nullptr);

  f.submit(kBlue);  // it is back: its counters go on
  REQUIRE(f.run_until([&] { return f.stats(kBlue).sent_items == 2; }));
  f.clock.now += 9min;
  f.streams->retire_except({{kBlue, 1}});
  f.clock.now += 9min;
  f.streams->retire_except({});
  f.clock.now += 9min;
  f.streams->retire_except({});
  REQUIRE(f.streams->entries().contains(kBlue));
  REQUIRE(f.stats(kBlue).sent_items == 2);
  f.clock.now += 1min;
  f.streams->retire_except({});
  REQUIRE_FALSE(f.streams->entries().contains(kBlue));
  REQUIRE(f.streams->entries().contains(kGreen));
  REQUIRE(f.streams->entries().contains(kOperator));

  f.submit(kBlue);  // from the beginning, and says since when
  REQUIRE(f.streams->entries().at(kBlue).since_unix_ns > since);
}

TEST_CASE("a change of health is told once, with its reason") {
  Fixture f;
  f.block(kBlue);
  f.submit(kBlue);
  f.submit(kGreen);
  REQUIRE(f.run_until([&] { return !f.stats(kBlue).healthy && f.stats(kGreen).sent_items == 1; }));
  auto changes = f.streams->changes_of_health();
  REQUIRE(changes.size() == 1);
  REQUIRE(changes[0].tenant == kBlue);
  REQUIRE_FALSE(changes[0].healthy);
  REQUIRE(changes[0].error.find("blue.jsonl") != std::string::npos);
  REQUIRE(f.streams->changes_of_health().empty());
  f.unblock(kBlue);
  REQUIRE(f.run_until([&] { return f.stats(kBlue).sent_items == 1; }));
  changes = f.streams->changes_of_health();
  REQUIRE(changes.size() == 1);
  REQUIRE(changes[0].healthy);
  REQUIRE(changes[0].error.empty());
  REQUIRE(f.streams->changes_of_health().empty());
}

TEST_CASE("a flush tells by stream what was not delivered, and nobody is retired meanwhile") {
  Fixture f;
  f.block(kBlue);
  f.submit(kBlue, 0, exporters::Values::last);
  f.submit(kBlue);
  f.submit(kGreen);
  std::optional<std::vector<StreamSet::Undelivered>> undelivered;
  f.streams->flush(300ms, [&](const auto& what) { undelivered = what; });
  REQUIRE(f.run_until([&] {
    f.clock.now += 1min;
    f.streams->retire_except({});
    return undelivered.has_value();
  }));
  REQUIRE(undelivered->size() == 1);
  const StreamSet::Undelivered& blue = undelivered->front();
  REQUIRE(blue.tenant == kBlue);
  REQUIRE(blue.what ==
          exporters::Undelivered{.batches = 2, .points = 2, .records = 0, .finals = 1, .newest = true});
  REQUIRE(blue.last_error.find("blue.jsonl") != std::string::npos);
}

TEST_CASE("a flush ends though its tenants have no VM any more") {
  Fixture f;
  f.submit(kGreen);
  REQUIRE(f.run_until([&] { return f.stats(kGreen).sent_items == 1; }));
  bool over = false;
  f.streams->flush(60s, [&](const auto& what) { over = what.empty(); });
  for (int i = 0; i < 3; ++i) f.streams->retire_except({});
  REQUIRE(f.run_until([&] { return over; }));
}

TEST_CASE("all queues together stay within their budget, and a small tenant keeps what it has") {
  Fixture f(1'000'000);
  f.block(kBlue);
  f.block(kGreen);
  f.submit(kGreen, 10'000, exporters::Values::last);
  for (int i = 0; i < 5; ++i) f.submit(kGreen, 10'000);
  for (int i = 0; i < 200; ++i) f.submit(kBlue, 20'000);
  REQUIRE(f.stats(kBlue).queued_bytes + f.stats(kGreen).queued_bytes <= 1'000'000);
  REQUIRE(f.stats(kBlue).queued_bytes > 900'000);
  REQUIRE(f.stats(kBlue).dropped_items_queue > 100);
  REQUIRE(f.stats(kGreen).dropped_items_queue == 0);
  REQUIRE(f.stats(kGreen).queued_batches == 6);
}

}  // namespace
}  // namespace kvmscope::hostd
