// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <optional>
#include <string_view>

// What systemd is told (sd_notify(3)). Without systemd every call does nothing.
namespace kvmscope::hostd::systemd {

/// The daemon is up; `status` is what `systemctl status` shows.
void notify_ready(std::string_view status);
void notify_status(std::string_view status);
void notify_stopping();
/// Still alive: to be called more often than watchdog_timeout().
void notify_watchdog();
/// After how long a silence systemd kills us; nothing if it does not watch this process.
std::optional<std::chrono::microseconds> watchdog_timeout();

}  // namespace kvmscope::hostd::systemd
