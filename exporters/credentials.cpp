// SPDX-License-Identifier: Apache-2.0
#include "exporters/credentials.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "hostd/core/unique_fd.h"

namespace kvmscope::exporters {
namespace {

using core::ErrorCode;
using core::fail;
using core::Result;

constexpr off_t kMaxFile = 1 << 20;
constexpr std::size_t kMaxToken = 64 << 10;

enum class Privacy { open, secret };

Result<std::string> read_file(const std::string& path, Privacy privacy) {
  const core::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return fail(core::Error::from_errno("open " + path));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return fail(core::Error::from_errno("stat " + path));
  if (!S_ISREG(info.st_mode)) return fail(ErrorCode::invalid_argument, path + ": is not a regular file");
  if (privacy == Privacy::secret && (info.st_mode & (S_IROTH | S_IWOTH)) != 0) {
    return fail(ErrorCode::permission_denied, path + ": others may read or write it: chmod o-rw " + path);
  }
  if (info.st_size > kMaxFile) return fail(ErrorCode::invalid_argument, path + ": is larger than 1 MiB");
  std::string text(static_cast<std::size_t>(info.st_size), '\0');
  std::size_t have = 0;
  while (have < text.size()) {
    const ssize_t got = ::read(fd.get(), text.data() + have, text.size() - have);
    if (got < 0) return fail(core::Error::from_errno("read " + path));
    if (got == 0) break;
    have += static_cast<std::size_t>(got);
  }
  text.resize(have);
  if (text.empty()) return fail(ErrorCode::invalid_argument, path + ": is empty");
  return text;
}

Result<std::string> read_token(const std::string& path) {
  Result<std::string> token = read_file(path, Privacy::secret);
  if (!token) return token;
  while (!token->empty() && (token->back() == '\n' || token->back() == '\r' || token->back() == ' ')) token->pop_back();
  if (token->empty()) return fail(ErrorCode::invalid_argument, path + ": is empty");
  if (token->size() > kMaxToken) return fail(ErrorCode::invalid_argument, path + ": is longer than 64 KiB");
  if (std::ranges::any_of(*token, [](unsigned char c) { return c <= 0x20 || c >= 0x7f; })) {
    return fail(ErrorCode::invalid_argument, path + ": holds a space, a control character or a byte that is not ASCII");
  }
  return token;
}

}  // namespace

core::Result<Credentials> read_credentials(const StreamConfig& config) {
  Credentials credentials;
  struct Source {
    const std::string* path;
    std::string* into;
    Privacy privacy;
  };
  const std::array<Source, 3> files = {{{&config.ca_file, &credentials.ca, Privacy::open},
                                        {&config.cert_file, &credentials.cert, Privacy::open},
                                        {&config.key_file, &credentials.key, Privacy::secret}}};
  for (const Source& file : files) {
    if (file.path->empty()) continue;
    Result<std::string> text = read_file(*file.path, file.privacy);
    if (!text) return fail(text.error());
    *file.into = std::move(*text);
  }
  if (!config.token_file.empty()) {
    Result<std::string> token = read_token(config.token_file);
    if (!token) return fail(token.error());
    credentials.token = std::move(*token);
  }
  return credentials;
}

std::string credentials_fingerprint(const StreamConfig& config) {
  std::string print;
  for (const std::string* path : {&config.token_file, &config.ca_file, &config.cert_file, &config.key_file}) {
    struct stat info {};
    if (path->empty() || ::stat(path->c_str(), &info) != 0) {
      print += "-;";
      continue;
    }
    for (const auto part : {static_cast<std::int64_t>(info.st_ino), static_cast<std::int64_t>(info.st_size),
                            static_cast<std::int64_t>(info.st_mode), static_cast<std::int64_t>(info.st_ctim.tv_sec),
                            static_cast<std::int64_t>(info.st_ctim.tv_nsec)}) {
      print += std::to_string(part) + ",";
    }
    print += ";";
  }
  return print;
}

}  // namespace kvmscope::exporters
