// SPDX-License-Identifier: Apache-2.0
#include "exporters/credentials.h"

#include <fcntl.h>
#include <string.h>  // NOLINT(modernize-deprecated-headers): explicit_bzero
#include <unistd.h>

#include <algorithm>

#include "hostd/core/unique_fd.h"

namespace kvmscope::exporters {
namespace {

using core::ErrorCode;
using core::fail;
using core::Result;

constexpr std::size_t kMaxBytes = 64U << 10;

std::int64_t ns(const timespec& time) {
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

void wipe(std::string& secret) {
  ::explicit_bzero(secret.data(), secret.size());
  secret.clear();
}

std::string_view noun(CredentialFile::Kind kind) {
  switch (kind) {
    case CredentialFile::Kind::token:
      return "token file ";
    case CredentialFile::Kind::private_key:
      return "key file ";
    case CredentialFile::Kind::certificate:
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
  if (size > kMaxBytes) {
    wipe(content);
    return fail(ErrorCode::invalid_argument, std::string(what) + ": larger than 64 KiB");
  }
  content.resize(size);
  return content;
}

}  // namespace

CredentialFile::~CredentialFile() {
  wipe(content_);
}

Result<std::string> CredentialFile::read(Stamp& stamp) const {
  const std::string what = std::string(noun(kind_)) + path_;
  const core::UniqueFd fd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a FIFO must not block
  if (!fd) return fail(core::Error::from_errno(what));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return fail(core::Error::from_errno(what));
  if (!S_ISREG(info.st_mode)) return fail(ErrorCode::invalid_argument, what + ": not a regular file");
  if (kind_ != Kind::certificate && (info.st_mode & S_IRWXO) != 0) {
    return fail(ErrorCode::permission_denied, what + ": other users may access it; run: chmod o= " + path_);
  }
  stamp = {info.st_dev, info.st_ino, info.st_size, ns(info.st_mtim), ns(info.st_ctim)};
  auto content = read_all(fd.get(), what);
  if (!content) return content;
  return checked(std::move(*content));
}

Result<std::string> CredentialFile::checked(std::string content) const {
  const std::string what = std::string(noun(kind_)) + path_;
  const auto refuse = [&](const char* why) {
    wipe(content);
    return fail(ErrorCode::invalid_argument, what + ": " + why);
  };
  if (kind_ == Kind::token) {
    while (!content.empty() && (content.back() == '\n' || content.back() == '\r')) content.pop_back();
    if (content.empty()) return refuse("empty");
    const auto visible = [](char c) { return c > 0x20 && c < 0x7F; };
    if (!std::all_of(content.begin(), content.end(), visible)) {
      return refuse("must be one line of visible ASCII characters: a header cannot carry the rest");
    }
  } else if (content.find(kind_ == Kind::private_key ? "PRIVATE KEY-----" : "-----BEGIN CERTIFICATE-----") ==
             std::string::npos) {
    return refuse(kind_ == Kind::private_key ? "holds no PEM private key" : "holds no PEM certificate");
  }
  return content;
}

Result<bool> CredentialFile::refresh(Look look) {
  if (look == Look::if_changed && stamp_.has_value()) {
    struct stat info{};
    if (::stat(path_.c_str(), &info) == 0 &&
        Stamp{info.st_dev, info.st_ino, info.st_size, ns(info.st_mtim), ns(info.st_ctim)} == *stamp_) {
      return false;
    }
  }
  stamp_.reset();
  Stamp stamp{};
  auto content = read(stamp);
  if (!content) return fail(content.error());
  stamp_ = stamp;
  const bool changed = *content != content_;
  content_.swap(*content);
  wipe(*content);
  return changed;
}

}  // namespace kvmscope::exporters
