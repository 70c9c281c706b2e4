// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "hostd/core/result.h"

namespace kvmscope::exporters {

enum class CredentialKind {
  token,        ///< one line of visible ASCII; secret
  private_key,  ///< PEM; secret
  certificate,  ///< PEM; public
};

/// Reads and checks a credential's file. Errors never show its content. Blocks for as long as the file's
/// mount hangs: never on the loop's thread.
core::Result<std::string> read_credential(const std::string& path, CredentialKind kind);

/// Overwrites before it clears.
void wipe(std::string& secret);

/// One credential in a file that is replaced or rewritten while the stream runs, as it was last read well.
class Credential {
 public:
  Credential(std::string path, CredentialKind kind) : path_(std::move(path)), kind_(kind) {}
  Credential(const Credential&) = delete;
  Credential& operator=(const Credential&) = delete;
  ~Credential() { wipe(content_); }

  const std::string& path() const { return path_; }
  CredentialKind kind() const { return kind_; }
  bool configured() const { return !path_.empty(); }
  /// Empty before it was read well.
  const std::string& content() const { return content_; }
  /// Takes the content over and wipes the old one; true if they differ.
  bool replace(std::string& content);

 private:
  std::string path_;
  CredentialKind kind_;
  std::string content_;
};

}  // namespace kvmscope::exporters
