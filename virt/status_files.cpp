// SPDX-License-Identifier: Apache-2.0
#include "virt/status_files.h"

#include <sys/inotify.h>

#include <boost/asio/buffer.hpp>
#include <chrono>
#include <cstring>
#include <string_view>
#include <utility>

namespace kvmscope::virt {
namespace {

/// One command of libvirt writes several times, the last of which counts.
constexpr std::chrono::milliseconds kSettle{50};

}  // namespace

StatusFiles::StatusFiles(const boost::asio::any_io_executor& executor, std::string directory,
                         std::function<void(Names)> on_written)
    : directory_(std::move(directory)),
      on_written_(std::move(on_written)),
      events_(executor),
      settled_(executor) {
  const int fd = ::inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (fd < 0) return;
  events_.assign(fd);
  read();
}

void StatusFiles::watch() {
  // A whole file takes the place of the old one (virFileRewrite in libvirt's src/util/virfile.c).
  if (events_.is_open()) ::inotify_add_watch(events_.native_handle(), directory_.c_str(), IN_MOVED_TO);
}

void StatusFiles::read() {
  events_.async_read_some(boost::asio::buffer(buffer_),
                          [this](const boost::system::error_code& error, std::size_t size) {
                            if (error) return;
                            take(size);
                            read();
                          });
}

void StatusFiles::take(std::size_t size) {
  const bool waiting = !written_.empty();
  for (std::size_t at = 0; at + sizeof(inotify_event) <= size;) {
    inotify_event event{};
    std::memcpy(&event, buffer_.data() + at, sizeof(event));
    const char* const name = buffer_.data() + at + sizeof(event);
    at += sizeof(event) + event.len;
    // What the kernel's queue could not hold, the next list finds.
    if (event.len == 0 || at > size) continue;
    std::string_view file(name, ::strnlen(name, event.len));
    constexpr std::string_view kSuffix = ".xml";
    if (!file.ends_with(kSuffix)) continue;
    file.remove_suffix(kSuffix.size());
    written_.emplace(file);
  }
  if (waiting || written_.empty()) return;
  // Counted from the first: however often it is written, it is told.
  settled_.expires_after(kSettle);
  settled_.async_wait([this](const boost::system::error_code& error) {
    if (!error) on_written_(std::exchange(written_, {}));
  });
}

}  // namespace kvmscope::virt
