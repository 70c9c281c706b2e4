// SPDX-License-Identifier: Apache-2.0
#include "hostd/systemd_notify.h"

#include <systemd/sd-daemon.h>

#include <algorithm>
#include <cstdint>
#include <string>

namespace kvmscope::hostd::systemd {
namespace {

/// A line break in the status would begin another variable of the message.
std::string status_line(std::string_view status) {
  std::string line = "STATUS=" + std::string(status);
  std::ranges::replace(line, '\n', ' ');
  return line;
}

}  // namespace

void notify_ready(std::string_view status) {
  sd_notify(0, ("READY=1\n" + status_line(status)).c_str());
}
void notify_status(std::string_view status) {
  sd_notify(0, status_line(status).c_str());
}
void notify_stopping() {
  sd_notify(0, "STOPPING=1");
}
void notify_watchdog() {
  sd_notify(0, "WATCHDOG=1");
}

std::optional<std::chrono::microseconds> watchdog_timeout() {
  std::uint64_t timeout_us = 0;
  if (sd_watchdog_enabled(0, &timeout_us) <= 0) return std::nullopt;
  return std::chrono::microseconds(timeout_us);
}

}  // namespace kvmscope::hostd::systemd
