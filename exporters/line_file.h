// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "hostd/core/result.h"
#include "hostd/core/unique_fd.h"

namespace kvmscope::exporters {

/// A file of whole lines: 0600, rotated by size (path -> path.1 -> path.2 ...), opened anew when it was moved
/// away, locked against a second writer. Blocks; for one thread.
class LineFile {
 public:
  LineFile(std::string path, std::uint64_t rotate_bytes, unsigned keep_files)
      : path_(std::move(path)), rotate_bytes_(rotate_bytes), keep_files_(keep_files) {}

  /// Appends the line whole or, on an error, not at all.
  core::Result<void> append(std::string_view line);

 private:
  core::Result<void> ensure_open();
  core::Result<void> open();
  core::Result<void> rotate();
  bool still_there() const;

  const std::string path_;
  const std::uint64_t rotate_bytes_;
  const unsigned keep_files_;
  core::UniqueFd fd_;
};

}  // namespace kvmscope::exporters
