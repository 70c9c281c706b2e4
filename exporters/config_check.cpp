// SPDX-License-Identifier: Apache-2.0
#include "exporters/config_check.h"

#include <algorithm>
#include <array>
#include <boost/asio/ip/address.hpp>
#include <charconv>
#include <optional>
#include <string_view>

namespace kvmscope::exporters {
namespace {

using Problems = std::vector<StreamProblem>;

constexpr std::size_t kMaxHeaderName = 128;
constexpr std::size_t kMaxHeaderValue = 4096;

/// What HTTP/2 and gRPC set themselves, or forbid (RFC 9113, 8.2.2).
constexpr std::array<std::string_view, 12> kReserved = {
    "connection", "content-length", "content-type", "host",    "keep-alive",        "proxy-connection",
    "te",         "trailer",        "trailers",     "upgrade", "transfer-encoding", "user-agent",
};

bool is_lower_or_digit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

bool is_alnum(char c) {
  return is_lower_or_digit(c) || (c >= 'A' && c <= 'Z');
}

bool is_digits(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) { return c >= '0' && c <= '9'; });
}

bool is_port(std::string_view text) {
  unsigned port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  return is_digits(text) && error == std::errc() && end == text.data() + text.size() && port >= 1 &&
         port <= 65535;
}

bool is_ipv4(const std::string& host) {
  boost::system::error_code error;
  boost::asio::ip::make_address_v4(host, error);
  return !error;
}

bool is_label(std::string_view label) {
  return !label.empty() && label.size() <= 63 && !label.starts_with('-') && !label.ends_with('-') &&
         std::ranges::all_of(label, [](char c) { return is_alnum(c) || c == '-' || c == '_'; });
}

/// A name or an IPv4 address: what ends in a number is an address, or wrong.
bool is_host(const std::string& host) {
  std::string_view rest = host;
  if (rest.ends_with('.')) rest.remove_suffix(1);
  if (rest.empty() || rest.size() > 253) return false;
  std::string_view label;
  for (std::size_t dot = 0; dot != std::string_view::npos;) {
    dot = rest.find('.');
    label = rest.substr(0, dot);
    if (!is_label(label)) return false;
    rest.remove_prefix(std::min(rest.size(), dot == std::string_view::npos ? rest.size() : dot + 1));
  }
  return !is_digits(label) || is_ipv4(host);
}

/// Without a zone: its name would have to be looked up on this host.
bool is_ipv6(const std::string& host) {
  boost::system::error_code error;
  boost::asio::ip::make_address_v6(host, error);
  return !error && host.find('%') == std::string::npos;
}

/// The host of host:port or [v6]:port.
std::optional<std::string> host_of(const std::string& endpoint) {
  const std::size_t colon = endpoint.rfind(':');
  if (colon == std::string::npos || !is_port(std::string_view(endpoint).substr(colon + 1))) return {};
  std::string host = endpoint.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
    return is_ipv6(host) ? std::optional(host) : std::nullopt;
  }
  return is_host(host) ? std::optional(host) : std::nullopt;
}

bool is_loopback(const std::string& host) {
  if (host == "localhost") return true;
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address(host, error);
  return !error && address.is_loopback();
}

bool is_header_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxHeaderName && std::ranges::all_of(name, [](char c) {
    return is_lower_or_digit(c) || c == '-' || c == '_' || c == '.';
  });
}

/// A name as far as it could be one: a whole line may have been taken for it, with its secret.
std::string shown(std::string_view name) {
  const auto end = std::ranges::find_if_not(name, [](char c) { return is_alnum(c) || c == '-' || c == '_'; });
  std::string out(name.begin(), end);
  if (out.size() < name.size() || out.size() > kMaxHeaderName) {
    out.resize(std::min(out.size(), kMaxHeaderName));
    out += "...";
  }
  return out;
}

void check_header(const std::string& name, const std::string& value, Problems& problems) {
  const auto add = [&](std::string message, std::string remedy) {
    problems.push_back(
        {"headers." + (is_header_name(name) ? name : shown(name)), std::move(message), std::move(remedy)});
  };
  if (!is_header_name(name)) {
    return add("the name may hold only a-z, 0-9, '-', '_' and '.', 128 of them at most",
               "write for example x-tenant-id");
  }
  if (name == "authorization") {
    return add("secrets do not belong here", "put the token into a file and name it in token_file");
  }
  if (name.ends_with("-bin")) return add("gRPC keeps -bin for binary values", "choose another name");
  if (name.starts_with("grpc-") || std::ranges::find(kReserved, name) != kReserved.end()) {
    return add("is reserved for the protocol", "choose another name");
  }
  const auto printable = [](char c) { return c >= 0x20 && c < 0x7F; };
  if (!std::ranges::all_of(value, printable) || value.starts_with(' ') || value.ends_with(' ')) {
    add("the value may hold only printable ASCII, no space at either end", "write a plain word");
  }
  if (value.size() > kMaxHeaderValue) add("the value is longer than 4096 bytes", "shorten it");
}

void check_tls(const StreamConfig& config, Problems& problems) {
  const auto add = [&](std::string key, std::string message, std::string remedy) {
    problems.push_back({"tls." + std::move(key), std::move(message), std::move(remedy)});
  };
  const std::pair<const char*, const std::string*> settings[] = {{"ca_file", &config.ca_file},
                                                                 {"cert_file", &config.cert_file},
                                                                 {"key_file", &config.key_file},
                                                                 {"server_name", &config.server_name}};
  for (const auto& [key, value] : settings) {
    if (!config.tls && !value->empty()) add(key, "has no meaning without TLS", "remove it, or enable TLS");
  }
  if (config.cert_file.empty() && !config.key_file.empty()) {
    add("cert_file", "is missing: key_file is there", "set both or none");
  }
  if (!config.cert_file.empty() && config.key_file.empty()) {
    add("key_file", "is missing: cert_file is there", "set both or none");
  }
  if (!config.server_name.empty() && !is_host(config.server_name)) {
    add("server_name", "must be a host's name", "write the name that the receiver's certificate carries");
  }
}

void check_grpc(const StreamConfig& config, Problems& problems) {
  const auto host = host_of(config.endpoint);
  if (!host) {
    problems.push_back({"endpoint", "must be host:port, with an IPv6 address in brackets",
                        "write for example collector.example:4317"});
  } else if (!config.tls && !config.token_file.empty() && !is_loopback(*host)) {
    problems.push_back({"token_file", "a token is never sent in plain text to another host",
                        "enable TLS (tls: {enabled: true})"});
  }
  check_tls(config, problems);
  for (const auto& [name, value] : config.headers) check_header(name, value, problems);
  if (config.timeout.count() <= 0) problems.push_back({"timeout", "must be longer than 0", "write 10s"});
}

void check_file(const StreamConfig& config, Problems& problems) {
  if (config.path.empty() || config.path.ends_with('/')) {
    problems.push_back({"path", "must name a file", "write the whole path from / on"});
  }
  if (config.rotate_bytes == 0) problems.push_back({"rotate", "must not be 0", "write 64MiB"});
}

}  // namespace

std::vector<StreamProblem> problems(const StreamConfig& config) {
  Problems problems;
  if (config.kind == StreamConfig::Kind::otlp_grpc) {
    check_grpc(config, problems);
  } else {
    check_file(config, problems);
  }
  if (config.backoff_min.count() <= 0)
    problems.push_back({"backoff.min", "must be longer than 0", "write 1s"});
  if (config.backoff_max < config.backoff_min) {
    problems.push_back({"backoff.max", "must not be shorter than backoff.min", "write 30s"});
  }
  if (config.queue_bytes == 0) problems.push_back({"queue", "must not be 0", "write 16MiB"});
  if (config.max_request_bytes == 0)
    problems.push_back({"max_request_bytes", "must not be 0", "leave it out"});
  return problems;
}

core::Result<void> check(const StreamConfig& config) {
  const Problems found = problems(config);
  if (found.empty()) return {};
  const StreamProblem& first = found.front();
  return core::fail(core::ErrorCode::invalid_argument,
                    first.key + ": " + first.message + ": " + first.remedy);
}

}  // namespace kvmscope::exporters
