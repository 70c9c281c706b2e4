// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "hostd/config.h"

namespace kvmscope::hostd {

/// One fact of an event. The key is a constant; the value may come from anywhere, it is escaped.
struct LogField {
  std::string_view key;
  std::variant<std::string_view, std::int64_t, std::uint64_t, double, bool> value;

  LogField(std::string_view name, std::string_view text) : key(name), value(text) {}
  LogField(std::string_view name, const std::string& text) : key(name), value(std::string_view(text)) {}
  LogField(std::string_view name, const char* text) : key(name), value(std::string_view(text)) {}
  LogField(std::string_view name, bool flag) : key(name), value(flag) {}
  LogField(std::string_view name, double number) : key(name), value(number) {}
  template <std::signed_integral T>
  LogField(std::string_view name, T number) : key(name), value(std::int64_t{number}) {}
  template <std::unsigned_integral T>
  LogField(std::string_view name, T number) : key(name), value(std::uint64_t{number}) {}
};

/// Sets up spdlog's default logger: one line per event on stderr. At start, and again to
/// change level or format. Log through log_event() only: it is what escapes. Any thread may log.
///   text: 2026-01-31T08:15:00.123Z warn tenant's stream fails tenant=4f1a endpoint="a b" error="x\ny"
///   json: {"ts":"2026-01-31T08:15:00.123Z","level":"warn","msg":"tenant's stream fails","tenant":"4f1a",...}
void init_logging(const LogConfig& config);

void log_event(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});

/// One line without its end, as log_event() writes it. Pure.
std::string format_event(LogFormat format, std::int64_t unix_ms, LogLevel level, std::string_view message,
                         std::span<const LogField> fields);

}  // namespace kvmscope::hostd
