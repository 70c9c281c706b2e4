// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "exporters/stream.h"
#include "hostd/core/result.h"

namespace kvmscope::exporters {

/// What a stream proves itself with, as its files have it now. Never printed.
struct Credentials {
  std::string token;  ///< empty: none is configured
  std::string ca;     ///< PEM; empty: the system's roots
  std::string cert;
  std::string key;
  bool operator==(const Credentials&) const = default;
};

/// Reads the files that the configuration names. Errors name the file and the remedy, never its content: it is missing,
/// empty, too large, holds control characters (token), or others may read it (token, key).
core::Result<Credentials> read_credentials(const StreamConfig& config);

/// Changes whenever one of the files was written or replaced: cheap enough to be asked every second.
std::string credentials_fingerprint(const StreamConfig& config);

}  // namespace kvmscope::exporters
