// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace kvmscope::exporters {

/// What came of sending one request once.
struct Attempt {
  enum class Verdict {
    ok,
    retry,            ///< may succeed later: keep it
    refused,          ///< will never succeed: drop it
    unauthenticated,  ///< these credentials will not do: keep it until they change
  } verdict = Verdict::ok;
  std::string message;  ///< why it failed, or the receiver's warning
  std::uint64_t rejected_items = 0;
  /// The receiver's own wish: not before.
  std::optional<std::chrono::milliseconds> retry_after;
};

}  // namespace kvmscope::exporters
