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
      {[](StreamConfig& c) { c.endpoint = ""; }, "host:port"},
      {[](StreamConfig& c) { c.endpoint = "collector"; }, "host:port"},
      {[](StreamConfig& c) { c.endpoint = "collector:0"; }, "host:port"},
      {[](StreamConfig& c) { c.endpoint = "collector:65536"; }, "host:port"},
      {[](StreamConfig& c) { c.endpoint = "collector:43x"; }, "host:port"},
      {[](StreamConfig& c) { c.endpoint = ":4317"; }, "host:port"},
      {[](StreamConfig& c) { c.endpoint = "https://collector:4317"; }, "host:port"},
      {[](StreamConfig& c) { c.endpoint = "unix:/run/x:1"; }, "host:port"},
      {[](StreamConfig& c) { c.endpoint = "::1:4317"; }, "host:port"},
      {[](StreamConfig& c) { c.endpoint = "[zz]:4317"; }, "host:port"},
      {[](StreamConfig& c) { c.tls = false; }, "plain text"},
      {[](StreamConfig& c) { c.tls = false, c.endpoint = "10.0.0.1:4317"; }, "plain text"},
      {[](StreamConfig& c) { c.tls = false, c.endpoint = "localhost.evil.example:4317"; }, "plain text"},
      {[](StreamConfig& c) { c.tls = false, c.token_file = "", c.ca_file = "/ca"; }, "tls: true"},
      {[](StreamConfig& c) { c.cert_file = "/cert"; }, "key_file"},
      {[](StreamConfig& c) { c.key_file = "/key"; }, "cert_file"},
      {[](StreamConfig& c) { c.server_name = "a b"; }, "server_name"},
      {[](StreamConfig& c) { c.headers = {{"", "v"}}; }, "header"},
      {[](StreamConfig& c) { c.headers = {{"X-Tenant-Id", "v"}}; }, "a-z"},
      {[](StreamConfig& c) { c.headers = {{"a b", "v"}}; }, "a-z"},
      {[](StreamConfig& c) { c.headers = {{":path", "v"}}; }, "a-z"},
      {[](StreamConfig& c) { c.headers = {{"grpc-timeout", "1S"}}; }, "reserved"},
      {[](StreamConfig& c) { c.headers = {{"te", "v"}}; }, "reserved"},
      {[](StreamConfig& c) { c.headers = {{"authorization", "Bearer x"}}; }, "token_file"},
      {[](StreamConfig& c) { c.headers = {{"x", "a\nb"}}; }, "printable"},
      {[](StreamConfig& c) { c.headers = {{"x", "gr\xC3\xBC\xC3\x9F"}}; }, "printable"},
      {[](StreamConfig& c) { c.headers = {{"x", " v"}}; }, "space"},
      {[](StreamConfig& c) { c.headers = {{"x", std::string(4097, 'v')}}; }, "4096"},
      {[](StreamConfig& c) { c.timeout = std::chrono::milliseconds(0); }, "timeout"},
      {[](StreamConfig& c) { c.backoff_min = std::chrono::milliseconds(0); }, "backoff_min"},
      {[](StreamConfig& c) { c.backoff_max = std::chrono::milliseconds(1); }, "backoff_max"},
      {[](StreamConfig& c) { c.queue_bytes = 0; }, "queue_bytes"},
      {[](StreamConfig& c) { c.max_request_bytes = 0; }, "max_request_bytes"},
      {[](StreamConfig& c) { c.kind = StreamConfig::Kind::file; }, "path"},
      {[](StreamConfig& c) { c.kind = StreamConfig::Kind::file, c.path = "/var/"; }, "path"},
      {[](StreamConfig& c) { c.kind = StreamConfig::Kind::file, c.path = "/x", c.rotate_bytes = 0; },
       "rotate_bytes"},
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
