// SPDX-License-Identifier: Apache-2.0
#include "exporters/line_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>

namespace kvmscope::exporters {
namespace {

using core::Error;
using core::ErrorCode;
using core::fail;
using core::Result;

Result<void> make_parents(const std::string& path) {
  for (std::size_t slash = path.find('/', 1); slash != std::string::npos; slash = path.find('/', slash + 1)) {
    const std::string directory = path.substr(0, slash);
    if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST)
      return fail(Error::from_errno("create " + directory));
  }
  return {};
}

/// A crash may have left a part of a line at the end: it would spoil the next one.
Result<void> cut_partial_line(int fd, off_t size) {
  std::array<char, 4096> chunk{};
  off_t end = size;
  while (end > 0) {
    const off_t from = std::max<off_t>(0, end - static_cast<off_t>(chunk.size()));
    const ssize_t got = ::pread(fd, chunk.data(), static_cast<std::size_t>(end - from), from);
    if (got != end - from) return fail(Error::from_errno("read the last line"));
    while (end > from && chunk[static_cast<std::size_t>(end - from - 1)] != '\n') --end;
    if (end > from) break;
  }
  if (end != size && ::ftruncate(fd, end) != 0) return fail(Error::from_errno("cut a partial line"));
  return {};
}

Result<void> write_all(int fd, std::string_view line) {
  while (!line.empty()) {
    const ssize_t written = ::write(fd, line.data(), line.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return fail(Error::from_errno("write"));
    line.remove_prefix(static_cast<std::size_t>(written));
  }
  return {};
}

Result<off_t> size_of(int fd) {
  struct stat info{};
  if (::fstat(fd, &info) != 0) return fail(Error::from_errno("stat"));
  return info.st_size;
}

}  // namespace

Result<void> LineFile::append(std::string_view line) {
  if (auto opened = ensure_open(); !opened) return opened;
  auto size = size_of(fd_.get());
  if (!size) return fail(size.error().wrap(path_));
  if (*size > 0 && static_cast<std::uint64_t>(*size) + line.size() > rotate_bytes_) {
    if (auto rotated = rotate(); !rotated) return rotated;
    size = size_of(fd_.get());
    if (!size) return fail(size.error().wrap(path_));
  }
  if (auto written = write_all(fd_.get(), line); !written) {
    if (::ftruncate(fd_.get(), *size) != 0) fd_.reset();  // opening it again cuts the part off
    return fail(written.error().wrap(path_));
  }
  return {};
}

bool LineFile::still_there() const {
  struct stat ours{};
  struct stat named{};
  return ::fstat(fd_.get(), &ours) == 0 && ::stat(path_.c_str(), &named) == 0 &&
         ours.st_dev == named.st_dev && ours.st_ino == named.st_ino;
}

Result<void> LineFile::ensure_open() {
  if (fd_ && still_there()) return {};
  fd_.reset();
  return open();
}

Result<void> LineFile::open() {
  if (auto made = make_parents(path_); !made) return made;
  core::UniqueFd fd(
      ::open(path_.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  if (!fd) return fail(Error::from_errno("open " + path_));
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return fail(Error::from_errno("stat " + path_));
  if (!S_ISREG(info.st_mode)) return fail(ErrorCode::invalid_argument, path_ + ": not a regular file");
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    return fail(ErrorCode::unavailable, path_ + ": another stream or process writes to it");
  }
  if ((info.st_mode & 07777) != 0600 && ::fchmod(fd.get(), 0600) != 0)
    return fail(Error::from_errno("chmod " + path_));
  if (auto cut = cut_partial_line(fd.get(), info.st_size); !cut) return fail(cut.error().wrap(path_));
  fd_ = std::move(fd);
  return {};
}

Result<void> LineFile::rotate() {
  if (keep_files_ == 0) {
    if (::ftruncate(fd_.get(), 0) != 0) return fail(Error::from_errno("truncate " + path_));
    return {};
  }
  const auto numbered = [this](unsigned number) {
    return number == 0 ? path_ : path_ + "." + std::to_string(number);
  };
  for (unsigned number = keep_files_; number > 0; --number) {
    const std::string from = numbered(number - 1);
    if (std::rename(from.c_str(), numbered(number).c_str()) != 0 && errno != ENOENT) {
      return fail(Error::from_errno("rotate " + from));
    }
  }
  fd_.reset();
  return open();
}

}  // namespace kvmscope::exporters
