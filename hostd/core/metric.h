// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "hostd/core/series.h"

namespace kvmscope::core {

enum class InstrumentType {
  counter,    ///< monotonic cumulative sum
  gauge,      ///< last value
  histogram,  ///< cumulative exponential histogram
};

/// What a series is called and measured in. Static lifetime: points refer to it by address.
struct Instrument {
  std::string_view name;
  std::string_view unit;  ///< UCUM: s, By, 1, {operation}
  std::string_view description;
  InstrumentType type = InstrumentType::counter;
};

/// A key and its value. The key is a constant; a string value is owned.
struct Attribute {
  std::string_view key;
  std::variant<std::string, std::int64_t, double, bool> value;
  bool operator==(const Attribute&) const = default;
};

/// One value of one series at one time.
struct Point {
  const Instrument* instrument = nullptr;
  /// Views of strings that outlive the batch's conversion.
  struct Label {
    std::string_view key;
    std::string_view value;
  };
  std::vector<Label> labels;
  std::uint64_t start_unix_ns = 0;  ///< 0 for gauges
  std::uint64_t time_unix_ns = 0;
  /// Integer for counts and bytes, double for seconds and ratios; a histogram is viewed, not copied.
  std::variant<std::int64_t, double, const HistogramValue*> value;
  /// The series ends here (OTLP's NO_RECORDED_VALUE).
  bool no_recorded_value = false;
};

/// The entity that points describe: one VM epoch, or the daemon itself.
struct Resource {
  std::vector<Attribute> attributes;
};

/// Severity numbers are OTLP's own.
enum class Severity : int { info = 9, warn = 13, error = 17 };

/// One event.
struct LogRecord {
  std::string_view event_name;  ///< constant, lower case, dotted: disk.error
  Severity severity = Severity::info;
  std::uint64_t time_unix_ns = 0;
  std::string body;
  std::vector<Attribute> attributes;
};

}  // namespace kvmscope::core
