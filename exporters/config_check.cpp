// SPDX-License-Identifier: Apache-2.0
#include "exporters/config_check.h"

#include <algorithm>
#include <array>
#include <boost/asio/ip/address.hpp>
#include <charconv>
#include <string_view>

namespace kvmscope::exporters {
namespace {

using core::ErrorCode;
using core::fail;
using core::Result;

constexpr std::size_t kMaxHeaderValue = 4096;

std::unexpected<core::Error> invalid(std::string why) {
  return fail(ErrorCode::invalid_argument, std::move(why));
}

bool is_port(std::string_view text) {
  unsigned port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return error == std::errc() && end == text.data() + text.size() && port >= 1 && port <= 65535;
}

bool is_name(std::string_view host) {
  return !host.empty() && host.size() <= 253 && std::all_of(host.begin(), host.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '-' || c == '_';
  });
}

/// The host of host:port or [v6]:port.
Result<std::string> host_of(const std::string& endpoint) {
  const std::string remedy =
      "endpoint '" + endpoint + "': must be host:port, for example collector.example:4317";
  const std::size_t colon = endpoint.rfind(':');
  if (colon == std::string::npos || !is_port(std::string_view(endpoint).substr(colon + 1)))
    return invalid(remedy);
  std::string host = endpoint.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
    boost::system::error_code error;
    boost::asio::ip::make_address_v6(host, error);
    if (error) return invalid(remedy);
    return host;
  }
  if (!is_name(host)) return invalid(remedy);
  return host;
}

bool is_loopback(const std::string& host) {
  if (host == "localhost") return true;
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(host, error);
  return !error && address.is_loopback();
}

Result<void> check_header(const std::string& key, const std::string& value) {
  constexpr std::array<std::string_view, 9> kReserved = {"host",       "te",      "content-type",
                                                         "user-agent", "trailer", "content-length",
                                                         "connection", "upgrade", "transfer-encoding"};
  const auto legal = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
  };
  if (key.empty() || !std::all_of(key.begin(), key.end(), legal)) {
    return invalid("header '" + key + "': may hold only a-z, 0-9, '-', '_' and '.'");
  }
  if (key.starts_with("grpc-") || std::find(kReserved.begin(), kReserved.end(), key) != kReserved.end()) {
    return invalid("header '" + key + "': reserved for the protocol");
  }
  if (key == "authorization") return invalid("header 'authorization': put the token into token_file instead");
  const auto printable = [](char c) { return c >= 0x20 && c < 0x7F; };
  if (!std::all_of(value.begin(), value.end(), printable) || value.starts_with(' ') || value.ends_with(' ')) {
    return invalid("header '" + key + "': its value may hold only printable ASCII, no space at either end");
  }
  if (value.size() > kMaxHeaderValue)
    return invalid("header '" + key + "': its value is longer than 4096 bytes");
  return {};
}

Result<void> check_grpc(const StreamConfig& config) {
  const auto host = host_of(config.endpoint);
  if (!host) return fail(host.error());
  if (!config.tls && !config.token_file.empty() && !is_loopback(*host)) {
    return invalid("endpoint '" + config.endpoint + "': a token is never sent in plain text; set tls: true");
  }
  if (!config.tls && !(config.ca_file.empty() && config.cert_file.empty() && config.key_file.empty() &&
                       config.server_name.empty())) {
    return invalid("ca_file, cert_file, key_file and server_name need tls: true");
  }
  if (config.cert_file.empty() != config.key_file.empty()) {
    return invalid("cert_file and key_file belong together: set both or none");
  }
  if (!config.server_name.empty() && !is_name(config.server_name)) {
    return invalid("server_name '" + config.server_name + "': must be a host name");
  }
  for (const auto& [key, value] : config.headers) {
    if (auto header = check_header(key, value); !header) return header;
  }
  if (config.timeout.count() <= 0) return invalid("timeout: must be longer than 0");
  return {};
}

}  // namespace

Result<void> check(const StreamConfig& config) {
  if (config.backoff_min.count() <= 0 || config.backoff_max < config.backoff_min) {
    return invalid("backoff_min must be longer than 0 and not longer than backoff_max");
  }
  if (config.queue_bytes == 0 || config.max_request_bytes == 0) {
    return invalid("queue_bytes and max_request_bytes must not be 0");
  }
  if (config.kind == StreamConfig::Kind::otlp_grpc) return check_grpc(config);
  if (config.path.empty() || config.path.ends_with('/')) {
    return invalid("path '" + config.path + "': must name a file");
  }
  if (config.rotate_bytes == 0) return invalid("rotate_bytes: must not be 0");
  return {};
}

}  // namespace kvmscope::exporters
