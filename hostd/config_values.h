// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace kvmscope::hostd {

// The small languages inside a configuration's values, and what is wrong with one. All pure.

/// `10s`, `500ms`, `5m`, `1h`.
std::optional<std::chrono::milliseconds> parse_duration(std::string_view text);
/// `4096`, `64KiB`, `16MiB`, `1GiB`.
std::optional<std::uint64_t> parse_size(std::string_view text);

std::string duration_text(std::chrono::milliseconds duration);
std::string size_text(std::uint64_t bytes);

/// The text cut after `most` bytes, without any byte that could disturb a terminal or a log.
std::string printable(std::string_view text, std::size_t most);
/// `"text"`: printable, cut after 64 bytes.
std::string quoted(std::string_view text);

/// The word that was probably meant, empty if none is near.
std::string_view nearest(std::string_view word, std::span<const std::string_view> known);

struct Complaint {
  std::string message;
  std::string remedy;
};
/// Nothing, if the value is fine. Messages quote the value unless it may be a secret.
using Check = std::optional<Complaint> (*)(std::string_view value);

std::optional<Complaint> check_label(std::string_view value);  ///< printable, at most 256 bytes, may be empty
std::optional<Complaint> check_name(std::string_view value);   ///< a label that is not empty
std::optional<Complaint> check_path(std::string_view value);   ///< absolute, without "..", names a file
std::optional<Complaint> check_optional_path(std::string_view value);  ///< the same, or empty
std::optional<Complaint> check_socket_path(std::string_view value);    ///< and short enough for an address
/// With ${vm.uuid} in it, or empty.
std::optional<Complaint> check_qmp_socket(std::string_view value);
std::optional<Complaint> check_libvirt_uri(std::string_view value);
std::optional<Complaint> check_qemu_name(std::string_view value);
std::optional<Complaint> check_uuid(std::string_view value);
std::optional<Complaint> check_pattern(std::string_view value);    ///< shell wildcards
std::optional<Complaint> check_endpoint(std::string_view value);   ///< host:port
std::optional<Complaint> check_host_name(std::string_view value);  ///< or empty
std::optional<Complaint> check_header_name(std::string_view value);

// What may be a secret, or have one in it by mistake: complaints name the place of the bad byte and its kind,
// never any of the value.
std::optional<Complaint> check_header_value(std::string_view value);
/// A path with ${tenant.id}, or empty: of a token, a key or a certificate.
std::optional<Complaint> check_credential_path(std::string_view value);

/// Every `${...}` in it is `${tenant.id}`.
std::optional<Complaint> check_variables(std::string_view value);

/// The beginning of a header's name that can be shown: up to the first byte that no name has.
std::string_view header_word(std::string_view name);

/// Whether an endpoint that check_endpoint() accepts stays on this host.
bool is_loopback(std::string_view endpoint);

}  // namespace kvmscope::hostd
