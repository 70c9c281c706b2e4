// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <nlohmann/json.hpp>
#include <sstream>

#include "exporters/line_file.h"
#include "tests/support/catch.h"
#include "tests/unit/exporters/receiver.h"

namespace kvmscope::exporters {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using Outcome = Stream::Outcome;

std::vector<json> lines(const std::string& path) {
  std::istringstream in(slurp(path));
  std::vector<json> out;
  for (std::string line; std::getline(in, line);) out.push_back(json::parse(line));
  return out;
}

unsigned mode(const std::string& path) {
  struct stat info{};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_mode & 07777;
}

/// No file of this process grows beyond the limit: write() then fails half way, as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    std::signal(SIGXFSZ, SIG_IGN);
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &before_) == 0);
    const rlimit limit{bytes, before_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }
  ~FileSizeLimit() { ::setrlimit(RLIMIT_FSIZE, &before_); }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

struct Fixture {
  explicit Fixture(const std::string& path) { config.path = path; }
  void make() {
    config.backoff_min = 10ms;
    config.backoff_max = 30ms;
    auto made = Stream::make(io.get_executor(), core::TenantId{"blue"}, config);
    REQUIRE(made.has_value());
    stream = std::move(*made);
  }
  void submit(Batch batch) {
    stream->submit(std::move(batch), [this](Outcome outcome) { done.push_back(outcome); });
  }
  bool wait_done(std::size_t count) {
    return run_until(io, [&] { return done.size() >= count; });
  }
  boost::asio::io_context io;
  StreamConfig config;
  std::vector<Outcome> done;
  std::unique_ptr<Stream> stream;
};

TEST_CASE("the file holds OTLP's JSON encoding, one request a line") {
  constexpr core::Instrument kCounter{"kvmscope.vm.disk.io", "By", "Bytes.", core::InstrumentType::counter};
  constexpr core::Instrument kLatency{"kvmscope.vm.disk.storage.duration", "s", "Time.",
                                      core::InstrumentType::histogram};
  core::HistogramValue histogram;
  histogram.sum_ns = 1'500'000'000;
  histogram.zero = 1;
  histogram.buckets[3] = 2;
  histogram.buckets[5] = 1;
  const std::vector<core::Point> points = {
      {.instrument = &kCounter,
       .labels = {{"disk.device", "vda"}},
       .start_unix_ns = 1'700'000'000'000'000'001,
       .time_unix_ns = 1'700'000'000'000'000'002,
       .value = std::int64_t{9'007'199'254'740'993}},
      {.instrument = &kLatency, .labels = {}, .start_unix_ns = 1, .time_unix_ns = 2, .value = &histogram}};
  const core::LogRecord record{.event_name = "disk.error",
                               .severity = core::Severity::warn,
                               .time_unix_ns = 3,
                               .body = "\"quoted\"\n",
                               .attributes = {{"ok", false}}};
  const TempDir dir;
  Fixture f(dir.file("new/deep/blue.jsonl"));
  f.make();
  Batch metrics(core::TenantId{"blue"}, Signal::metrics);
  metrics.add({{{"vm.id", std::string("v1")}, {"n", std::int64_t{5}}}}, encode_metrics(points), 2);
  f.submit(std::move(metrics));
  REQUIRE(f.wait_done(1));
  Batch logs(core::TenantId{"blue"}, Signal::logs);
  logs.add({{{"vm.id", std::string("v1")}}}, encode_logs({&record, 1}), 1);
  f.submit(std::move(logs));
  REQUIRE(f.wait_done(2));

  const auto written = lines(f.config.path);
  REQUIRE(written.size() == 2);
  json resource = written[0]["resourceMetrics"][0];
  REQUIRE(resource["resource"] == json::parse(R"({"attributes":[{"key":"vm.id","value":{"stringValue":"v1"}},
                                                                {"key":"n","value":{"intValue":"5"}}]})"));
  REQUIRE(resource["schemaUrl"].get<std::string>().starts_with("https://"));
  REQUIRE(resource["scopeMetrics"][0]["scope"]["name"] == "kvmscope");
  REQUIRE(resource["scopeMetrics"][0]["metrics"] == json::parse(R"([
    {"name":"kvmscope.vm.disk.io","description":"Bytes.","unit":"By","sum":{"aggregationTemporality":2,
     "isMonotonic":true,"dataPoints":[{"attributes":[{"key":"disk.device","value":{"stringValue":"vda"}}],
     "startTimeUnixNano":"1700000000000000001","timeUnixNano":"1700000000000000002","asInt":"9007199254740993"}]}},
    {"name":"kvmscope.vm.disk.storage.duration","description":"Time.","unit":"s","exponentialHistogram":{
     "aggregationTemporality":2,"dataPoints":[{"startTimeUnixNano":"1","timeUnixNano":"2","count":"4","sum":1.5,
     "scale":2,"zeroCount":"1","zeroThreshold":9.5367431640625e-07,
     "positive":{"offset":-77,"bucketCounts":["2","0","1"]}}]}}])"));
  REQUIRE(written[1]["resourceLogs"][0]["scopeLogs"][0]["logRecords"] == json::parse(R"([
    {"timeUnixNano":"3","severityNumber":13,"severityText":"WARN","body":{"stringValue":"\"quoted\"\n"},
     "attributes":[{"key":"ok","value":{"boolValue":false}}],"observedTimeUnixNano":"3","eventName":"disk.error"}])"));
  REQUIRE(f.stream->stats().sent_items == 3);
  REQUIRE(f.stream->stats().healthy);
  REQUIRE(mode(f.config.path) == 0600);
  REQUIRE(mode(dir.file("new")) == 0700);
  REQUIRE(mode(dir.file("new/deep")) == 0700);
}

TEST_CASE("files rotate by size, keep so many, and lose no line among those kept") {
  const TempDir dir;
  Fixture f(dir.file("blue.jsonl"));
  f.config.rotate_bytes = 2500;
  f.config.keep_files = 2;
  f.make();
  for (std::size_t i = 0; i < 20; ++i) {
    f.submit(batch("blue", std::to_string(i), Signal::metrics, 500));
    REQUIRE(f.wait_done(i + 1));
  }
  std::vector<int> kept;
  for (const char* suffix : {".2", ".1", ""}) {
    const std::string path = f.config.path + suffix;
    REQUIRE(std::filesystem::file_size(path) <= 2500);
    REQUIRE(mode(path) == 0600);
    for (const json& line : lines(path)) {
      const json& value = line["resourceMetrics"][0]["resource"]["attributes"][0]["value"]["stringValue"];
      kept.push_back(std::stoi(value.get<std::string>()));
    }
  }
  REQUIRE_FALSE(std::filesystem::exists(f.config.path + ".3"));
  REQUIRE(kept.size() >= 3);
  REQUIRE(kept.back() == 19);
  for (std::size_t i = 1; i < kept.size(); ++i) REQUIRE(kept[i] == kept[i - 1] + 1);
}

TEST_CASE("without kept files the file starts anew") {
  const TempDir dir;
  Fixture f(dir.file("blue.jsonl"));
  f.config.rotate_bytes = 1500;
  f.config.keep_files = 0;
  f.make();
  for (std::size_t i = 0; i < 5; ++i) {
    f.submit(batch("blue", std::to_string(i), Signal::metrics, 500));
    REQUIRE(f.wait_done(i + 1));
  }
  REQUIRE(std::filesystem::file_size(f.config.path) <= 1500);
  REQUIRE_FALSE(std::filesystem::exists(f.config.path + ".1"));
  REQUIRE_FALSE(lines(f.config.path).empty());
}

TEST_CASE("a file that was moved away or removed is made anew") {
  const TempDir dir;
  Fixture f(dir.file("blue.jsonl"));
  f.make();
  f.submit(batch("blue", "a"));
  REQUIRE(f.wait_done(1));
  std::filesystem::rename(f.config.path, dir.file("taken"));
  f.submit(batch("blue", "b"));
  REQUIRE(f.wait_done(2));
  REQUIRE(lines(dir.file("taken")).size() == 1);
  REQUIRE(lines(f.config.path).size() == 1);
  std::filesystem::remove(f.config.path);
  f.submit(batch("blue", "c"));
  REQUIRE(f.wait_done(3));
  REQUIRE(lines(f.config.path).size() == 1);
}

TEST_CASE("a disk that is full half way through a line leaves no part of it, and the batch waits for room") {
  const TempDir dir;
  Fixture f(dir.file("blue.jsonl"));
  f.make();
  f.submit(batch("blue", "a", Signal::metrics, 500));
  REQUIRE(f.wait_done(1));
  const auto size = std::filesystem::file_size(f.config.path);
  {
    const FileSizeLimit full(size + 300);
    f.submit(batch("blue", "b", Signal::metrics, 500));
    REQUIRE(run_until(f.io, [&] { return f.stream->stats().failed_requests >= 2; }));
    REQUIRE(f.done.size() == 1);
    REQUIRE_FALSE(f.stream->stats().healthy);
    REQUIRE(f.stream->stats().queued_batches == 1);
    REQUIRE(f.stream->stats().last_error.find("too large") != std::string::npos);
    // An attempt may be in its write just now; what it leaves is what counts.
    REQUIRE(run_until(f.io, [&] { return std::filesystem::file_size(f.config.path) == size; }));
  }
  REQUIRE(f.wait_done(2));
  REQUIRE(f.done[1] == Outcome::acknowledged);
  REQUIRE(lines(f.config.path).size() == 2);
  REQUIRE(f.stream->stats().healthy);
  REQUIRE(f.stream->stats().retried_requests >= 2);
}

TEST_CASE("what a crash left of a line is cut off before the next") {
  const TempDir dir;
  for (const std::string& tail : {std::string("{\"resour"), std::string(10'000, 'x')}) {
    const std::string path = dir.write("blue.jsonl", "{}\n" + tail);
    LineFile file(path, 1U << 20, 1);
    REQUIRE(file.append("{\"next\":1}\n").has_value());
    REQUIRE(slurp(path) == "{}\n{\"next\":1}\n");
  }
  const std::string only_part = dir.write("part", "no newline at all");
  LineFile file(only_part, 1U << 20, 1);
  REQUIRE(file.append("{}\n").has_value());
  REQUIRE(slurp(only_part) == "{}\n");
}

TEST_CASE("a file is written by one stream only, is no link, and is closed to others") {
  const TempDir dir;
  const std::string path = dir.write("blue.jsonl", "");
  REQUIRE(::chmod(path.c_str(), 0644) == 0);
  {
    LineFile first(path, 1U << 20, 1);
    REQUIRE(first.append("{}\n").has_value());
    REQUIRE(mode(path) == 0600);
    LineFile second(path, 1U << 20, 1);
    const auto refused = second.append("{}\n");
    REQUIRE_FALSE(refused.has_value());
    REQUIRE(refused.error().message().find("another stream") != std::string::npos);
  }
  LineFile third(path, 1U << 20, 1);
  REQUIRE(third.append("{}\n").has_value());
  REQUIRE(::symlink(path.c_str(), dir.file("link").c_str()) == 0);
  REQUIRE_FALSE(LineFile(dir.file("link"), 1U << 20, 1).append("{}\n").has_value());
  REQUIRE(::mkfifo(dir.file("fifo").c_str(), 0600) == 0);
  REQUIRE_FALSE(LineFile(dir.file("fifo"), 1U << 20, 1).append("{}\n").has_value());
}

TEST_CASE("a file stream refuses another tenant, and is destroyed with work waiting") {
  const TempDir dir;
  Fixture f(dir.file("blue.jsonl"));
  f.make();
  f.submit(batch("green", "theirs"));
  REQUIRE(f.wait_done(1));
  REQUIRE(f.done[0] == Outcome::dropped);
  REQUIRE_FALSE(std::filesystem::exists(f.config.path));
  for (int i = 0; i < 50; ++i) f.submit(batch("blue", std::to_string(i), Signal::metrics, 10'000));
  const auto begin = std::chrono::steady_clock::now();
  f.stream.reset();
  REQUIRE(std::chrono::steady_clock::now() - begin < 2s);
  run_for(f.io, 20ms);
  REQUIRE(f.done.size() == 1);
}

TEST_CASE("a directory that cannot be made is an error that is retried") {
  const TempDir dir;
  dir.write("file", "");
  Fixture f(dir.file("file/blue.jsonl"));
  f.make();
  f.submit(batch("blue", "a"));
  REQUIRE(run_until(f.io, [&] { return f.stream->stats().failed_requests >= 2; }));
  REQUIRE(f.stream->stats().last_error.find("Not a directory") != std::string::npos);
  std::filesystem::remove(dir.file("file"));
  REQUIRE(f.wait_done(1));
}

}  // namespace
}  // namespace kvmscope::exporters
