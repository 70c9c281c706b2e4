// SPDX-License-Identifier: Apache-2.0
#include "hostd/logging.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <type_traits>

namespace kvmscope::hostd {
namespace {

std::atomic<LogFormat> log_format{LogFormat::text};

std::string_view level_name(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return "debug";
    case LogLevel::info:
      return "info";
    case LogLevel::warn:
      return "warn";
    case LogLevel::error:
      return "error";
  }
  return "error";
}

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warn:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

std::string timestamp(std::int64_t unix_ms) {
  const auto seconds = static_cast<std::time_t>(unix_ms / 1'000);
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(seconds), unix_ms % 1'000);
}

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("_-./:@%+,~*#[]{}").find(c) != std::string_view::npos;
}

void append_escaped(std::string& out, std::string_view text) {
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n')
      out += "\\n";
    else if (byte < 0x20 || byte >= 0x7f)
      out += fmt::format("\\x{:02x}", byte);
    else if (c == '"' || c == '\\')
      out.append({'\\', c});
    else
      out += c;
  }
}

std::string text_value(std::string_view text) {
  if (!text.empty() && std::ranges::all_of(text, is_plain)) return std::string(text);
  std::string out = "\"";
  append_escaped(out, text);
  return out + "\"";
}

std::string text_line(std::int64_t unix_ms, LogLevel level, std::string_view message,
                      std::span<const LogField> fields) {
  std::string line = fmt::format("{} {} ", timestamp(unix_ms), level_name(level));
  append_escaped(line, message);
  for (const LogField& field : fields) {
    line += fmt::format(" {}=", field.key);
    line += std::visit(
        [](const auto& value) {
          if constexpr (std::is_same_v<std::decay_t<decltype(value)>, std::string_view>)
            return text_value(value);
          else
            return fmt::format("{}", value);
        },
        field.value);
  }
  return line;
}

std::string json_line(std::int64_t unix_ms, LogLevel level, std::string_view message,
                      std::span<const LogField> fields) {
  // Ordered: the time first, then what happened.
  nlohmann::ordered_json line{{"ts", timestamp(unix_ms)}, {"level", level_name(level)}, {"msg", message}};
  for (const LogField& field : fields)
    std::visit([&](const auto& value) { line[std::string(field.key)] = value; }, field.value);
  return line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace

void init_logging(const LogConfig& config) {
  auto logger =
      std::make_shared<spdlog::logger>("kvmscope", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern("%v");
  logger->set_level(spdlog_level(config.level));
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
  log_format = config.format;
}

void log_event(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  spdlog::logger& logger = *spdlog::default_logger_raw();
  if (!logger.should_log(spdlog_level(level))) return;
  const auto now = std::chrono::floor<std::chrono::milliseconds>(std::chrono::system_clock::now());
  logger.log(spdlog_level(level),
             spdlog::string_view_t(format_event(log_format, now.time_since_epoch().count(), level, message,
                                                {fields.begin(), fields.size()})));
}

std::string format_event(LogFormat format, std::int64_t unix_ms, LogLevel level, std::string_view message,
                         std::span<const LogField> fields) {
  return format == LogFormat::json ? json_line(unix_ms, level, message, fields)
                                   : text_line(unix_ms, level, message, fields);
}

}  // namespace kvmscope::hostd
