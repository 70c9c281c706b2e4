// SPDX-License-Identifier: Apache-2.0
#include "hostd/config_values.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "bpf/abi.h"
#include "hostd/tenant_template.h"

namespace kvmscope::hostd {
namespace {

struct Unit {
  std::string_view name;
  std::uint64_t factor;
};

constexpr Unit kDurations[] = {{"ms", 1}, {"s", 1'000}, {"m", 60'000}, {"h", 3'600'000}};
constexpr Unit kSizes[] = {{"", 1}, {"KiB", 1U << 10}, {"MiB", 1U << 20}, {"GiB", 1U << 30}};

std::optional<std::uint64_t> parse_with_unit(std::string_view text, std::span<const Unit> units) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{}) return std::nullopt;
  const std::string_view name(end, static_cast<std::size_t>(text.data() + text.size() - end));
  for (const Unit& unit : units) {
    if (unit.name != name) continue;
    // Durations end up in a signed number.
    if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / unit.factor)
      return std::nullopt;
    return number * unit.factor;
  }
  return std::nullopt;
}

std::string text_with_unit(std::uint64_t value, std::span<const Unit> units) {
  const Unit* best = units.data();
  for (const Unit& unit : units)
    if (value != 0 && value % unit.factor == 0) best = &unit;
  return fmt::format("{}{}", value / best->factor, best->name);
}

bool is_control(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_lower(char c) {
  return c >= 'a' && c <= 'z';
}
bool is_alnum(char c) {
  return is_digit(c) || is_lower(c) || (c >= 'A' && c <= 'Z');
}
bool is_header_letter(char c) {
  return is_alnum(c) || c == '-' || c == '_' || c == '.';
}
bool is_hex(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

Complaint complain(std::string_view what, std::string_view value, std::string_view remedy) {
  return {fmt::format("{} (got {})", what, quoted(value)), std::string(remedy)};
}

/// What a secret may have got into by mistake is not shown, not even in part: where it is wrong, and how.
std::string_view kind_of(char c) {
  if (static_cast<unsigned char>(c) >= 0x80) return "not ASCII";
  if (is_control(c)) return "a control character";
  return c == ' ' ? "a space" : "not allowed";
}

template <typename Allowed>
std::optional<std::string> bad_byte(std::string_view value, Allowed allowed) {
  const auto bad = std::ranges::find_if_not(value, allowed);
  if (bad == value.end()) return std::nullopt;
  return fmt::format("byte {} is {}", bad - value.begin() + 1, kind_of(*bad));
}

template <typename Address>
std::optional<Address> parse_address(int family, std::string_view text) {
  Address address{};
  if (::inet_pton(family, std::string(text).c_str(), &address) != 1) return std::nullopt;
  return address;
}

std::optional<std::string_view> wrong_with_path(std::string_view value) {
  if (!value.starts_with('/')) return "must be an absolute path";
  if (value.size() > 4000) return "must be at most 4000 bytes";
  if (std::ranges::any_of(value, is_control)) return "must not hold control characters";
  // A directory may be named with a slash at its end; a file that is called so by mistake is found when it is
  // opened.
  if (std::filesystem::path(value).lexically_normal().string() != value || value == "/")
    return "must be a plain path, without \"..\", \".\" and double slashes";
  return std::nullopt;
}

/// The first unknown `${...}`: where it begins, and what it is.
struct Variable {
  std::size_t at;
  std::string_view text;
};
std::optional<Variable> unknown_variable(std::string_view value) {
  for (std::size_t at = value.find("${"); at != std::string_view::npos; at = value.find("${", at + 1)) {
    if (value.substr(at).starts_with(kTenantVariable)) continue;
    const std::size_t end = value.find('}', at);
    return Variable{at, value.substr(at, end == std::string_view::npos ? end : end - at + 1)};
  }
  return std::nullopt;
}

constexpr std::string_view kUnknownVariable = "names an unknown variable";
constexpr std::string_view kKnownVariable = "write ${tenant.id}, the only one there is";

std::optional<Complaint> check_hidden_variables(std::string_view value) {
  const auto variable = unknown_variable(value);
  if (!variable) return std::nullopt;
  return Complaint{fmt::format("{} (at byte {})", kUnknownVariable, variable->at + 1),
                   std::string(kKnownVariable)};
}

/// A name whose last label is a number would be taken for an address (RFC 3986, 3.2.2), so it must be one.
bool is_host(std::string_view host) {
  const bool legal =
      !host.empty() && host.size() <= 253 && is_alnum(host.front()) &&
      std::ranges::all_of(host, [](char c) { return is_alnum(c) || c == '-' || c == '.' || c == '_'; });
  if (!legal) return false;
  const std::string_view last = host.substr(host.rfind('.') + 1);
  return !std::ranges::all_of(last, is_digit) || parse_address<in_addr>(AF_INET, host).has_value();
}

/// Host (an IPv6 address without its brackets) and port; nothing if it is not host:port.
struct HostPort {
  std::string_view host;
  bool ipv6 = false;
};
std::optional<HostPort> split_endpoint(std::string_view value) {
  const std::size_t colon = value.rfind(':');
  if (colon == std::string_view::npos) return std::nullopt;
  const std::string_view port = value.substr(colon + 1);
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc{} || end != port.data() + port.size() || number == 0 || number > 65535)
    return std::nullopt;
  std::string_view host = value.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
    if (!parse_address<in6_addr>(AF_INET6, host)) return std::nullopt;
    return HostPort{host, true};
  }
  if (!is_host(host)) return std::nullopt;
  return HostPort{host, false};
}

std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::optional<std::chrono::milliseconds> parse_duration(std::string_view text) {
  const auto value = parse_with_unit(text, kDurations);
  if (!value) return std::nullopt;
  return std::chrono::milliseconds(static_cast<std::int64_t>(*value));
}

std::optional<std::uint64_t> parse_size(std::string_view text) {
  return parse_with_unit(text, kSizes);
}

std::string duration_text(std::chrono::milliseconds duration) {
  if (duration.count() == 0) return "0s";
  return text_with_unit(static_cast<std::uint64_t>(duration.count()), kDurations);
}

std::string size_text(std::uint64_t bytes) {
  return text_with_unit(bytes, kSizes);
}

std::string printable(std::string_view text, std::size_t most) {
  std::string out;
  for (const char c : text.substr(0, most)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f)
      out += fmt::format("\\x{:02x}", byte);
    else if (c == '"' || c == '\\')
      out.append({'\\', c});
    else
      out += c;
  }
  if (text.size() > most) out += "...";
  return out;
}

std::string quoted(std::string_view text) {
  return fmt::format("\"{}\"", printable(text, 64));
}

std::string_view nearest(std::string_view word, std::span<const std::string_view> known) {
  constexpr std::size_t kLongest = 40;
  if (word.empty() || word.size() > kLongest) return {};
  constexpr std::size_t kTelling = 3;
  for (const std::string_view candidate : known)
    if (std::min(word.size(), candidate.size()) >= kTelling &&
        (word.starts_with(candidate) || candidate.starts_with(word)))
      return candidate;
  std::string_view best;
  std::size_t best_distance = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const std::string_view candidate : known) {
    const std::size_t found = distance(word, candidate);
    if (found < best_distance) {
      best = candidate;
      best_distance = found;
    }
  }
  return best;
}

std::optional<Complaint> check_label(std::string_view value) {
  if (value.size() > 256) return complain("must be at most 256 bytes", value, "shorten it");
  if (std::ranges::any_of(value, is_control))
    return complain("must not hold control characters", value, "write printable characters");
  return std::nullopt;
}

std::optional<Complaint> check_name(std::string_view value) {
  if (value.empty()) return Complaint{"must not be empty", "write a name"};
  return check_label(value);
}

std::optional<Complaint> check_path(std::string_view value) {
  const auto wrong = wrong_with_path(value);
  if (!wrong) return std::nullopt;
  return complain(*wrong, value, "write the whole path from / on, without detours");
}

std::optional<Complaint> check_optional_path(std::string_view value) {
  return value.empty() ? std::nullopt : check_path(value);
}

std::optional<Complaint> check_socket_path(std::string_view value) {
  if (value.size() >= sizeof(sockaddr_un::sun_path))
    return complain("must be at most 107 bytes, the kernel's limit for a socket", value,
                    "write a shorter one, for example /run/kvmscope/control.sock");
  return check_path(value);
}

std::optional<Complaint> check_qmp_socket(std::string_view value) {
  constexpr const char* kRemedy = "write for example \"/run/kvmscope-qmp/${vm.uuid}.sock\"";
  if (value.empty()) return std::nullopt;
  const std::size_t at = value.find(kVmVariable);
  if (at == std::string_view::npos) return complain("must differ from VM to VM", value, kRemedy);
  const std::string example =
      fmt::format("{}{}{}", value.substr(0, at), std::string(36, 'x'), value.substr(at + kVmVariable.size()));
  if (example.find("${") != std::string::npos)
    return complain("names an unknown variable, or ${vm.uuid} twice", value, kRemedy);
  if (value.ends_with('/')) return complain("names a folder", value, kRemedy);
  if (example.size() >= sizeof(sockaddr_un::sun_path))
    return complain("must be at most 107 bytes with a VM's id in it, the kernel's limit for a socket", value,
                    kRemedy);
  return check_path(value);
}

std::optional<Complaint> check_libvirt_uri(std::string_view value) {
  if (value.starts_with("qemu:///") || value.starts_with("qemu+unix:///")) return check_label(value);
  constexpr std::string_view kMessage = "must be this host's own QEMU driver";
  if (value.find('@') != std::string_view::npos)  // user:password@
    return Complaint{std::string(kMessage), "write qemu:///system"};
  return complain(kMessage, value, "write qemu:///system");
}

std::optional<Complaint> check_qemu_name(std::string_view value) {
  const std::string_view stem = value.ends_with('*') ? value.substr(0, value.size() - 1) : value;
  if (stem.empty() || stem.find_first_of("/*") != std::string_view::npos)
    return complain("must be a file's name, with a '*' at its end at most", value,
                    "write for example qemu-system-*");
  // As long as the programs compare.
  if (stem.size() >= KV_NAME_BYTES)
    return complain(fmt::format("must be at most {} characters", KV_NAME_BYTES - 1), value,
                    fmt::format("write how it begins, with a '*': {}*",
                                printable(stem.substr(0, KV_NAME_BYTES - 1), 64)));
  return check_label(value);
}

std::optional<Complaint> check_uuid(std::string_view value) {
  bool good = value.size() == 36;
  for (std::size_t i = 0; good && i < value.size(); ++i)
    good = i == 8 || i == 13 || i == 18 || i == 23 ? value[i] == '-' : is_hex(value[i]);
  if (good) return std::nullopt;
  return complain("must be a UUID", value, "write it as virsh domuuid prints it");
}

std::optional<Complaint> check_pattern(std::string_view value) {
  if (value.empty()) return Complaint{"must not be empty", "write a name, or * for every VM"};
  for (std::size_t i = 0; i < value.size(); ++i) {
    if (value[i] == '\\') {
      ++i;
      continue;
    }
    if (value[i] != '[') continue;
    std::size_t first = i + 1;
    if (first < value.size() && (value[first] == '!' || value[first] == '^')) ++first;
    // A ']' that comes first is a member.
    const std::size_t end = value.find(']', first + 1);
    if (first >= value.size() || end == std::string_view::npos)
      return complain("has a '[' without its ']'", value, "close it, or write \\[ for the character itself");
    i = end;
  }
  return check_label(value);
}

std::optional<Complaint> check_endpoint(std::string_view value) {
  constexpr std::string_view kRemedy = "write for example collector.example:4317";
  if (value.find('@') != std::string_view::npos)
    return Complaint{
        "must be host:port, without a user or a password before an '@'",
        "write for example collector.example:4317, and name a file with the token in token_file"};
  if (value.find("${") != std::string_view::npos)
    return complain(
        "must be the same for all tenants", value,
        "write host:port, and give a tenant with a collector of its own an entry in tenants.overrides");
  if (value.find("://") != std::string_view::npos)
    return complain("must be host:port without a scheme", value,
                    "write for example collector.example:4317; tls says whether it is https");
  if (!split_endpoint(value)) return complain("must be host:port", value, kRemedy);
  return std::nullopt;
}

std::optional<Complaint> check_host_name(std::string_view value) {
  if (value.empty() || is_host(value)) return std::nullopt;
  return complain("must be a host name", value, "write the name that the receiver's certificate carries");
}

std::optional<Complaint> check_header_name(std::string_view value) {
  const bool good = !value.empty() && value.size() <= 128 && std::ranges::all_of(value, [](char c) {
    return is_lower(c) || is_digit(c) || c == '-' || c == '_' || c == '.';
  });
  if (!good) {
    constexpr std::string_view kMessage =
        "must be a header's name in lower case: letters, digits, '-', '_', '.'";
    constexpr std::string_view kRemedy = "write for example x-tenant-id";
    // Who wrote the whole header as its name wrote the value, too.
    if (auto bad = bad_byte(value, is_header_letter))
      return Complaint{fmt::format("{} ({})", kMessage, *bad), std::string(kRemedy)};
    return complain(kMessage, value, kRemedy);
  }
  if (value == "authorization")
    return Complaint{"secrets do not belong into this file",
                     "put the token into a file and name it in token_file"};
  if (value.ends_with("-bin"))
    return complain("must not end in -bin, which gRPC keeps for binary values", value, "choose another name");
  constexpr std::string_view kTaken[] = {
      "content-type", "content-length",   "host",    "te",      "user-agent",       "connection",
      "keep-alive",   "proxy-connection", "trailer", "upgrade", "transfer-encoding"};
  if (value.starts_with("grpc-") || std::ranges::find(kTaken, value) != std::end(kTaken))
    return complain("is set by the transport itself", value, "choose another name");
  return std::nullopt;
}

std::optional<Complaint> check_header_value(std::string_view value) {
  std::optional<std::string> wrong;
  if (value.size() > 1024)
    wrong = fmt::format("it has {}", value.size());
  else if (auto bad = bad_byte(value, [](char c) { return c >= 0x20 && c < 0x7f; }))
    wrong = std::move(bad);
  else if (value.starts_with(' '))
    wrong = "byte 1 is a space";
  else if (value.ends_with(' '))
    wrong = fmt::format("byte {} is a space", value.size());
  if (wrong)
    return Complaint{
        fmt::format("must be at most 1024 printable ASCII characters, without spaces around ({})", *wrong),
        "write a plain word"};
  return check_hidden_variables(value);
}

std::optional<Complaint> check_credential_path(std::string_view value) {
  if (value.empty()) return std::nullopt;
  if (auto complaint = check_hidden_variables(value)) return complaint;
  const auto wrong = wrong_with_path(value);
  if (!wrong) return std::nullopt;
  // The secret itself may stand here instead of its file.
  const auto bad = bad_byte(value, [](char c) { return !is_control(c); });
  return Complaint{bad ? fmt::format("{} ({})", *wrong, *bad) : std::string(*wrong),
                   "put it into a file, and write that file's whole path from / on"};
}

std::optional<Complaint> check_variables(std::string_view value) {
  const auto variable = unknown_variable(value);
  return variable ? std::optional(complain(kUnknownVariable, variable->text, kKnownVariable)) : std::nullopt;
}

std::string_view header_word(std::string_view name) {
  return name.substr(
      0, static_cast<std::size_t>(std::ranges::find_if_not(name, is_header_letter) - name.begin()));
}

bool is_loopback(std::string_view endpoint) {
  const auto parts = split_endpoint(endpoint);
  if (!parts) return false;
  if (parts->ipv6) {
    const auto address = parse_address<in6_addr>(AF_INET6, parts->host);
    return address && std::memcmp(&*address, &in6addr_loopback, sizeof(in6_addr)) == 0;
  }
  // 127.0.0.0/8 in numbers only: 127.evil.example is not loopback.
  const auto address = parse_address<in_addr>(AF_INET, parts->host);
  return address ? ntohl(address->s_addr) >> 24 == IN_LOOPBACKNET : parts->host == "localhost";
}

}  // namespace kvmscope::hostd
