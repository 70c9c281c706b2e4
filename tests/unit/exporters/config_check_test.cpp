// SPDX-License-Identifier: Apache-2.0
#include "exporters/config_check.h"

#include <boost/asio/io_context.hpp>

#include "tests/support/catch.h"

namespace kvmscope::exporters {
namespace {

StreamConfig good() {
  StreamConfig config;
  config.kind = StreamConfig::Kind::otlp_grpc;
  config.endpoint = "collector.example:4317";
  config.token_file = "/etc/token";
  config.headers = {{"x-tenant-id", "blue"}};
  return config;
}

TEST_CASE("a stream that could leak or never work is not made, and the error names what to change") {
  using Change = void (*)(StreamConfig&);
  struct Row {
    Change change;
    const char* error;
  };
  const std::vector<Row> rows = {
      {[](StreamConfig& c) { c.endpoint = ""; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "collector"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "collector:0"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "collector:65536"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "collector:43x"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "collector:+43"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = ":4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "https://collector:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "unix:/run/x:1"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "::1:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "[zz]:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "[1:2:3:4:5:6:7:8:9:a]:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "[1::2::3]:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "[fe80::1%lo]:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "[]:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "127.0.0.999:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "127.1:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "10.0.0.0.1:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "collector.4317:1"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "a..b:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = "-a.b:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.endpoint = std::string(64, 'a') + ".b:4317"; }, "endpoint"},
      {[](StreamConfig& c) { c.tls = false; }, "token_file"},
      {[](StreamConfig& c) { c.tls = false, c.endpoint = "10.0.0.1:4317"; }, "token_file"},
      {[](StreamConfig& c) { c.tls = false, c.endpoint = "localhost.evil.example:4317"; }, "token_file"},
      {[](StreamConfig& c) { c.tls = false, c.token_file = "", c.ca_file = "/ca"; }, "tls.ca_file"},
      {[](StreamConfig& c) { c.cert_file = "/cert"; }, "tls.key_file"},
      {[](StreamConfig& c) { c.key_file = "/key"; }, "tls.cert_file"},
      {[](StreamConfig& c) { c.server_name = "a b"; }, "tls.server_name"},
      {[](StreamConfig& c) { c.headers = {{"", "v"}}; }, "headers."},
      {[](StreamConfig& c) { c.headers = {{"X-Tenant-Id", "v"}}; }, "headers.X-Tenant-Id"},
      {[](StreamConfig& c) { c.headers = {{"a b", "v"}}; }, "headers.a..."},
      {[](StreamConfig& c) { c.headers = {{":path", "v"}}; }, "headers...."},
      {[](StreamConfig& c) { c.headers = {{std::string(129, 'a'), "v"}}; }, "128"},
      {[](StreamConfig& c) { c.headers = {{"grpc-timeout", "1S"}}; }, "reserved"},
      {[](StreamConfig& c) { c.headers = {{"te", "v"}}; }, "reserved"},
      {[](StreamConfig& c) { c.headers = {{"upgrade", "v"}}; }, "reserved"},
      {[](StreamConfig& c) { c.headers = {{"trailer", "v"}}; }, "reserved"},
      {[](StreamConfig& c) { c.headers = {{"keep-alive", "v"}}; }, "reserved"},
      {[](StreamConfig& c) { c.headers = {{"x-bin", "v"}}; }, "-bin"},
      {[](StreamConfig& c) { c.headers = {{"authorization", "v"}}; }, "token_file"},
      {[](StreamConfig& c) { c.headers = {{"x", "a\nb"}}; }, "printable"},
      {[](StreamConfig& c) { c.headers = {{"x", "gr\xC3\xBC\xC3\x9F"}}; }, "printable"},
      {[](StreamConfig& c) { c.headers = {{"x", " v"}}; }, "space"},
      {[](StreamConfig& c) { c.headers = {{"x", std::string(4097, 'v')}}; }, "4096"},
      {[](StreamConfig& c) { c.timeout = std::chrono::milliseconds(0); }, "timeout"},
      {[](StreamConfig& c) { c.backoff_min = std::chrono::milliseconds(0); }, "backoff.min"},
      {[](StreamConfig& c) { c.backoff_max = std::chrono::milliseconds(1); }, "backoff.max"},
      {[](StreamConfig& c) { c.queue_bytes = 0; }, "queue"},
      {[](StreamConfig& c) { c.max_request_bytes = 0; }, "max_request_bytes"},
      {[](StreamConfig& c) { c.kind = StreamConfig::Kind::file; }, "path"},
      {[](StreamConfig& c) { c.kind = StreamConfig::Kind::file, c.path = "/var/"; }, "path"},
      {[](StreamConfig& c) { c.kind = StreamConfig::Kind::file, c.path = "/x", c.rotate_bytes = 0; },
       "rotate"},
  };
  REQUIRE(check(good()).has_value());
  boost::asio::io_context io;
  for (const Row& row : rows) {
    StreamConfig config = good();
    row.change(config);
    const auto made = Stream::make(io.get_executor(), core::TenantId{"blue"}, config);
    INFO("expected: " << row.error);
    REQUIRE_FALSE(made.has_value());
    REQUIRE(made.error().code() == core::ErrorCode::invalid_argument);
    INFO(made.error().message());
    REQUIRE(made.error().message().find(row.error) != std::string::npos);
  }
}

TEST_CASE("hosts that are well written pass") {
  for (const char* endpoint :
       {"collector:4317", "collector.example.:4317", "my_collector:4317", "4317.example:1", "10.0.0.1:4317",
        "[2001:db8::1]:4317", "[1:2:3:4:5:6:7:8]:4317", "[::ffff:10.0.0.1]:4317"}) {
    StreamConfig config = good();
    config.endpoint = endpoint;
    INFO(endpoint);
    REQUIRE(check(config).has_value());
  }
}

TEST_CASE("all problems are found at once, and none shows what may be a secret") {
  StreamConfig config = good();
  config.endpoint = "user:hunter2@collector.example:4317";
  config.headers = {{"authorization", "Bearer hunter2"},
                    {"authorization: Bearer hunter2", ""},
                    {"x-api-key", "hunter2\n"},
                    {"te", "hunter2"},
                    {"x-long", std::string(5000, 'x') + "hunter2"}};
  config.timeout = std::chrono::milliseconds(0);
  std::vector<std::string> keys;
  for (const StreamProblem& problem : problems(config)) {
    keys.push_back(problem.key);
    for (const std::string& text : {problem.key, problem.message, problem.remedy}) {
      INFO(text);
      REQUIRE(text.find("hunter2") == std::string::npos);
      REQUIRE_FALSE(text.empty());
    }
  }
  REQUIRE(keys == std::vector<std::string>{"endpoint", "headers.authorization", "headers.authorization...",
                                           "headers.te", "headers.x-api-key", "headers.x-long", "timeout"});
}

TEST_CASE("plain text with a token is for loopback only") {
  for (const char* endpoint : {"localhost:4317", "127.0.0.1:4317", "127.9.9.9:1", "[::1]:4317"}) {
    StreamConfig config = good();
    config.tls = false;
    config.endpoint = endpoint;
    REQUIRE(check(config).has_value());
  }
}

}  // namespace
}  // namespace kvmscope::exporters
