// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvmscope::hostd {

// Numbers and names as a person reads them in a column. Pure.

/// `-` for 0, `0.4`, `12`, `1.2k`, `3.4M`.
std::string human_rate(double per_s);
/// `-` for 0, `512 B/s`, `4.0 MiB/s`.
std::string human_byte_rate(double bytes_per_s);
/// `512 B`, `64.0 KiB`.
std::string human_bytes(double bytes);
/// `-` for none, `850ns`, `850us`, `20.5ms`, `1.2s`, `3m`, `5h`, `2d`.
std::string human_duration(std::optional<std::uint64_t> ns);
/// `-` for 0, else all digits.
std::string human_count(std::uint64_t count);

/// A name made safe for a terminal: control and bidirectional characters and broken UTF-8 become `?`. VM
/// names are their owners' choice.
std::string safe_text(std::string_view text);
/// Columns that safe text takes on a terminal.
std::size_t display_width(std::string_view safe);
/// Safe text cut to this many columns, the last one being `…` if anything was cut.
std::string fit(std::string_view safe, std::size_t columns);

}  // namespace kvmscope::hostd
