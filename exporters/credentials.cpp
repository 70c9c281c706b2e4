// SPDX-License-Identifier: Apache-2.0
#include "exporters/credentials.h"

#include <fcntl.h>
#include <string.h>  // NOLINT(modernize-deprecated-headers): explicit_bzero
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "hostd/core/unique_fd.h"

namespace kvmscope::exporters {
namespace {

using core::ErrorCode;
using core::fail;
using core::Result;

constexpr std::size_t kMaxBytes = 64U << 10;

std::string_view noun(CredentialKind kind) {
  switch (kind) {
    case CredentialKind::token:
      return "token file ";
    case CredentialKind::private_key:
      return "key file ";
    case CredentialKind::certificate:
      return "certificate file ";
  }
  return "";
}

Result<std::string> read_all(int fd, std::string_view what) {
  std::string content(kMaxBytes + 1, '\0');
  std::size_t size = 0;
  while (size < content.size()) {
    const ssize_t got = ::read(fd, content.data() + size, content.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(core::Error::from_errno(what));
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
  }
  std::string exact(content, 0, size);  // it stays for long: without the room that was only for reading
  wipe(content);
  if (size <= kMaxBytes) return exact;
  wipe(exact);
  return fail(ErrorCode::invalid_argument, std::string(what) + ": larger than 64 KiB");
}

Result<std::string> checked(std::string content, CredentialKind kind, const std::string& what) {
  const auto refuse = [&](const char* why) {
    wipe(content);
    return fail(ErrorCode::invalid_argument, what + ": " + why);
  };
  if (kind == CredentialKind::token) {
    while (!content.empty() && (content.back() == '\n' || content.back() == '\r')) content.pop_back();
    if (content.empty()) return refuse("empty");
    const auto visible = [](char c) { return c > 0x20 && c < 0x7F; };
    if (!std::all_of(content.begin(), content.end(), visible)) {
      return refuse("must be one line of visible ASCII characters: a header cannot carry the rest");
    }
  } else if (content.find(kind == CredentialKind::private_key
                              ? "PRIVATE KEY-----"
                              : "-----BEGIN CERTIFICATE-----") == std::string::npos) {
    return refuse(kind == CredentialKind::private_key ? "holds no PEM private key"
                                                      : "holds no PEM certificate");
  }
  return content;
}

}  // namespace

void wipe(std::string& secret) {
  ::explicit_bzero(secret.data(), secret.size());
  secret.clear();
}

Result<std::string> read_credential(const std::string& path, CredentialKind kind) {
  const std::string what = std::string(noun(kind)) + path;
  const core::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a FIFO must not block
  if (!fd) return fail(core::Error::from_errno(what));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return fail(core::Error::from_errno(what));
  if (!S_ISREG(info.st_mode)) return fail(ErrorCode::invalid_argument, what + ": not a regular file");
  if (kind != CredentialKind::certificate && (info.st_mode & S_IRWXO) != 0) {
    return fail(ErrorCode::permission_denied, what + ": other users may access it; run: chmod o= " + path);
  }
  auto content = read_all(fd.get(), what);
  if (!content) return content;
  return checked(std::move(*content), kind, what);
}

bool Credential::replace(std::string& content) {
  const bool changed = content != content_;
  content_.swap(content);
  wipe(content);
  return changed;
}

}  // namespace kvmscope::exporters
