// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "exporters/attempt.h"
#include "exporters/otlp.h"

namespace kvmscope::exporters {

/// All that comes from outside is read here: pure, and fuzzed.

/// The delay of a RetryInfo in grpc-status-details-bin (a google.rpc.Status). None if there is none, or it is
/// garbage; a negative one is 0.
std::optional<std::chrono::milliseconds> retry_delay(const std::string& status_details);

/// Judges a failed call by OTLP's table. `code` is gRPC's status code, never OK.
Attempt judge_failure(int code, std::string_view message, const std::string& status_details);

/// Judges the answer to a call that succeeded: partial success, or a warning. An answer that cannot be read
/// is still an acknowledgement.
Attempt judge_response(Signal signal, const std::string& response);

/// Text of a stranger as one line of at most 300 bytes: each secret in it (of 4 bytes or more) becomes "***",
/// control characters become spaces.
std::string one_line(std::string text, std::span<const std::string> secrets);

}  // namespace kvmscope::exporters
