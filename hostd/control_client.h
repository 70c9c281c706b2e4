// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "hostd/core/result.h"

namespace kvmscope::hostd {

/// Asks the daemon one thing and waits for the answer: the reply's "result". Blocks for at most `timeout`.
/// unavailable: nobody answers on that socket. permission_denied: it may not be opened, or the daemon refuses
/// this user. deadline_exceeded: it did not answer in time. corrupt: what came is no reply. invalid_argument,
/// unsupported, resource_exhausted, system: the daemon's own error (bad_request, unknown_command, busy,
/// internal).
core::Result<nlohmann::json> control_call(const std::string& socket, const nlohmann::json& request,
                                          std::chrono::milliseconds timeout);

}  // namespace kvmscope::hostd
