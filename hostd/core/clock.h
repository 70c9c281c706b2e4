// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <ctime>

namespace kvmscope::core {

/// Where time comes from. Injected, so that tests own it.
class Clock {
 public:
  virtual ~Clock() = default;
  /// Wall clock, ns since 1970 (CLOCK_REALTIME): what OTLP points carry.
  virtual std::uint64_t unix_ns() const = 0;
  /// ns since boot without suspend (CLOCK_MONOTONIC), the clock of bpf_ktime_get_ns: for delays and
  /// deadlines.
  virtual std::uint64_t monotonic_ns() const = 0;
  /// ns since boot with suspend (CLOCK_BOOTTIME), the clock of process start times.
  virtual std::uint64_t boottime_ns() const = 0;
};

class SystemClock final : public Clock {
 public:
  std::uint64_t unix_ns() const override { return read(CLOCK_REALTIME); }
  std::uint64_t monotonic_ns() const override { return read(CLOCK_MONOTONIC); }
  std::uint64_t boottime_ns() const override { return read(CLOCK_BOOTTIME); }

 private:
  static std::uint64_t read(clockid_t id) {
    timespec now{};
    clock_gettime(id, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
  }
};

}  // namespace kvmscope::core
