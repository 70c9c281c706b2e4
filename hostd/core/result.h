// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cerrno>
#include <cstring>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace kvmscope::core {

/// What went wrong, for the two readers an error has: code decides, context explains.
enum class ErrorCode {
  invalid_argument,    ///< the caller's or the operator's input is wrong
  not_found,           ///< the thing named does not exist (any more)
  already_exists,      ///< somebody else made it first
  permission_denied,   ///< a capability or a file mode is missing
  unsupported,         ///< this kernel, library or peer cannot do it
  resource_exhausted,  ///< a quota, a pool or the system's memory is used up
  unavailable,         ///< try again later: the peer is away
  deadline_exceeded,
  corrupt,  ///< data that breaks its own format
  system,   ///< any other failed system call; context holds errno's text
};

/// An error with its chain of context, outermost first: "open config: /etc/x.yaml: No such file".
class Error {
 public:
  Error(ErrorCode code, std::string context) : code_(code), context_(std::move(context)) {}

  /// From errno (or a negative libbpf return, sign removed) of the call just made.
  static Error from_errno(std::string_view what, int errno_value = errno) {
    ErrorCode code = ErrorCode::system;
    if (errno_value == ENOENT || errno_value == ESRCH) code = ErrorCode::not_found;
    if (errno_value == EEXIST) code = ErrorCode::already_exists;
    if (errno_value == EPERM || errno_value == EACCES) code = ErrorCode::permission_denied;
    if (errno_value == ENOMEM || errno_value == ENOSPC || errno_value == E2BIG)
      code = ErrorCode::resource_exhausted;
    return {code, std::string(what) + ": " + std::strerror(errno_value)};
  }

  ErrorCode code() const { return code_; }
  const std::string& message() const { return context_; }

  /// The same error seen from one level up.
  Error wrap(std::string_view what) const { return {code_, std::string(what) + ": " + context_}; }

 private:
  ErrorCode code_;
  std::string context_;
};

/// The value, or why there is none. For whatever can fail at run time.
template <typename T>
using Result = std::expected<T, Error>;

inline std::unexpected<Error> fail(Error error) {
  return std::unexpected<Error>(std::move(error));
}
inline std::unexpected<Error> fail(ErrorCode code, std::string context) {
  return std::unexpected<Error>(Error(code, std::move(context)));
}

}  // namespace kvmscope::core
