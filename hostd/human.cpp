// SPDX-License-Identifier: Apache-2.0
#include "hostd/human.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <span>

namespace kvmscope::hostd {
namespace {

/// Three digits at most; one decimal below ten and wherever there is room for it.
std::string scaled(double value, double step, std::span<const std::string_view> units) {
  std::size_t unit = 0;
  // 999.95 would be printed as 1000.0, and 999.5 of what has no decimal as 1000.
  while (unit + 1 < units.size() && value >= step - (unit == 0 ? 0.5 : 0.05)) {
    value /= step;
    ++unit;
  }
  return fmt::format("{:.{}f}{}", value, unit == 0 && value >= 9.95 ? 0 : 1, units[unit]);
}

struct CodePoint {
  char32_t value = 0;
  std::size_t bytes = 1;
  bool valid = false;
};

CodePoint decode(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {lead, 1, true};
  const std::size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < bytes) return {};
  char32_t value = lead & (0x7FU >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    const auto next = static_cast<unsigned char>(text[i]);
    if ((next & 0xC0) != 0x80) return {};
    value = (value << 6) | (next & 0x3FU);
  }
  constexpr std::array<char32_t, 5> kSmallest{0, 0, 0x80, 0x800, 0x10000};
  if (value < kSmallest[bytes] || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return {};
  return {value, bytes, true};
}

struct Range {
  char32_t first;
  char32_t last;
};
bool within(char32_t c, std::span<const Range> ranges) {
  for (const Range& range : ranges)
    if (c >= range.first && c <= range.last) return true;
  return false;
}

/// Controls, joiners, marks of direction, byte order marks: nothing that a name needs.
constexpr Range kUnsafe[] = {{0, 0x1F},        {0x7F, 0x9F},      {0xAD, 0xAD},     {0x200B, 0x200F},
                             {0x2028, 0x202E}, {0x2060, 0x206F},  {0xFE00, 0xFE0F}, {0xFEFF, 0xFEFF},
                             {0xFFF9, 0xFFFB}, {0xE0000, 0xE0FFF}};
constexpr Range kCombining[] = {{0x300, 0x36F},   {0x483, 0x489},   {0x591, 0x5BD},  {0x1AB0, 0x1AFF},
                                {0x1DC0, 0x1DFF}, {0x20D0, 0x20FF}, {0xFE20, 0xFE2F}};
constexpr Range kWide[] = {{0x1100, 0x115F}, {0x2E80, 0xA4CF},   {0xAC00, 0xD7A3},
                           {0xF900, 0xFAFF}, {0xFE30, 0xFE6F},   {0xFF00, 0xFF60},
                           {0xFFE0, 0xFFE6}, {0x1F300, 0x1FAFF}, {0x20000, 0x3FFFD}};

std::size_t width_of(char32_t c) {
  return within(c, kCombining) ? 0 : within(c, kWide) ? 2 : 1;
}

}  // namespace

std::string human_rate(double per_s) {
  static constexpr std::string_view kUnits[] = {"", "k", "M", "G"};
  return per_s > 0 ? scaled(per_s, 1'000, kUnits) : "-";
}

std::string human_bytes(double bytes) {
  static constexpr std::string_view kUnits[] = {" B", " KiB", " MiB", " GiB", " TiB"};
  if (bytes < 1'023.5) return fmt::format("{:.0f} B", bytes);
  return scaled(bytes, 1'024, kUnits);
}

std::string human_byte_rate(double bytes_per_s) {
  return bytes_per_s > 0 ? human_bytes(bytes_per_s) + "/s" : "-";
}

std::string human_duration(std::optional<std::uint64_t> ns) {
  if (!ns) return "-";
  struct Unit {
    double ns;
    std::string_view name;
    double until;  // in this unit
  };
  constexpr Unit kUnits[] = {{1, "ns", 1e3},   {1e3, "us", 1e3},  {1e6, "ms", 1e3},   {1e9, "s", 120},
                             {60e9, "m", 120}, {3600e9, "h", 48}, {86400e9, "d", 1e9}};
  for (const Unit& unit : kUnits) {
    const double value = static_cast<double>(*ns) / unit.ns;
    // Below 100 a second digit after the point would be noise, above it even the first.
    const bool decimal = value < 99.95 && unit.ns >= 1e3 && unit.ns <= 1e9;
    if (value < unit.until - (decimal ? 0.05 : 0.5))
      return fmt::format("{:.{}f}{}", value, decimal ? 1 : 0, unit.name);
  }
  return "-";
}

std::string human_count(std::uint64_t count) {
  return count == 0 ? "-" : fmt::format("{}", count);
}

std::string safe_text(std::string_view text) {
  std::string safe;
  while (!text.empty()) {
    const CodePoint point = decode(text);
    if (point.valid && !within(point.value, kUnsafe))
      safe += text.substr(0, point.bytes);
    else
      safe += '?';
    text.remove_prefix(point.bytes);
  }
  return safe;
}

std::size_t display_width(std::string_view safe) {
  std::size_t width = 0;
  while (!safe.empty()) {
    const CodePoint point = decode(safe);
    width += width_of(point.value);
    safe.remove_prefix(point.bytes);
  }
  return width;
}

std::string fit(std::string_view safe, std::size_t columns) {
  if (display_width(safe) <= columns) return std::string(safe);
  std::string out;
  std::size_t width = 0;
  for (std::string_view rest = safe; !rest.empty();) {
    const CodePoint point = decode(rest);
    if (width + width_of(point.value) + 1 > columns) break;
    width += width_of(point.value);
    out += rest.substr(0, point.bytes);
    rest.remove_prefix(point.bytes);
  }
  return columns == 0 ? std::string() : out + "…";
}

}  // namespace kvmscope::hostd
