// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "exporters/stream.h"
#include "hostd/core/result.h"

namespace kvmscope::exporters {

/// One thing that is wrong with a stream's settings. Safe to print: shows no value of a header or an
/// endpoint (they may hold what was meant to be secret), and of a header's name only what can be one.
struct StreamProblem {
  std::string key;  ///< as in the configuration file, below the stream: endpoint, tls.key_file, headers.x-a
  std::string message;
  std::string remedy;
};

/// Everything that keeps a stream from being made of this; empty if all is well. Pure: looks at no file
/// (credentials may come later), asks no name server. `${tenant.id}` may stand in headers and paths.
std::vector<StreamProblem> problems(const StreamConfig& config);

/// The first problem as an error: "key: message: remedy".
core::Result<void> check(const StreamConfig& config);

}  // namespace kvmscope::exporters
