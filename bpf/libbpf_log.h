// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace kvmscope::bpf {

/// Collects what libbpf would print on this thread, as long as it lives. Not nested.
class LibbpfLog {
 public:
  LibbpfLog();
  ~LibbpfLog();
  LibbpfLog(const LibbpfLog&) = delete;
  LibbpfLog& operator=(const LibbpfLog&) = delete;

  /// The last lines, joined by " | ": the verifier says what is wrong at its end.
  std::string last_lines(int count) const;
};

}  // namespace kvmscope::bpf
