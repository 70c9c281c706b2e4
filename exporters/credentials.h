// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>

#include "hostd/core/result.h"

namespace kvmscope::exporters {

/// One credential in a file that is replaced or rewritten while the stream runs. Errors never show its
/// content.
class CredentialFile {
 public:
  enum class Kind {
    token,        ///< one line of visible ASCII; secret
    private_key,  ///< PEM; secret
    certificate,  ///< PEM; public
  };

  CredentialFile(std::string path, Kind kind) : path_(std::move(path)), kind_(kind) {}
  CredentialFile(const CredentialFile&) = delete;
  CredentialFile& operator=(const CredentialFile&) = delete;
  ~CredentialFile();

  bool configured() const { return !path_.empty(); }
  /// What was last read well; empty before that.
  const std::string& content() const { return content_; }

  enum class Look {
    if_changed,  ///< trust device, inode, size and times (a write within the clock's grain may be missed)
    always,      ///< compare the content
  };
  /// Reads the file if it changed. True if the content did. On an error the content stays what it was.
  core::Result<bool> refresh(Look look);

 private:
  struct Stamp {
    dev_t device;
    ino_t inode;
    off_t size;
    std::int64_t modified_ns;
    std::int64_t changed_ns;  ///< a corrected mode changes nothing else
    bool operator==(const Stamp&) const = default;
  };
  core::Result<std::string> read(Stamp& stamp) const;
  core::Result<std::string> checked(std::string content) const;

  std::string path_;
  Kind kind_;
  std::string content_;
  std::optional<Stamp> stamp_;  ///< of the content; none after an error
};

}  // namespace kvmscope::exporters
