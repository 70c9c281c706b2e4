// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>

#include "tenancy/registry.h"

namespace kvmscope::hostd {

/// How long the pool of spare slots may take to fill before the daemon calls itself ready all the same: much
/// less than systemd waits.
inline constexpr std::chrono::seconds kPoolPatience{10};

/// That the daemon is ready, with what the operator should know and do about it: empty if all is well.
struct Ready {
  std::string_view warning;
  std::string_view remedy;
};

/// Ready: what runs already has been looked for, and what starts from here on finds a slot. Where it cannot
/// find one because all slots are taken, or because slots cannot be made, waiting longer would not help.
std::optional<Ready> readiness(bool scanned, std::uint32_t spares, std::uint32_t spares_wanted,
                               const tenancy::RegistryStats& slots,
                               std::chrono::steady_clock::duration since_start);

}  // namespace kvmscope::hostd
