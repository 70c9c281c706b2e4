// SPDX-License-Identifier: Apache-2.0
#include "virt/status_files.h"

#include <sys/inotify.h>

#include <boost/asio/buffer.hpp>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>

#include "virt/files.h"

namespace kvmscope::virt {
namespace {

/// One command of libvirt writes several times, the last of which counts.
constexpr std::chrono::milliseconds kSettle{50};

/// The domain's name; empty if that file is no status file.
std::string_view domain_of(std::string_view file) {
  constexpr std::string_view kSuffix = ".xml";
  if (!file.ends_with(kSuffix)) return {};
  return file.substr(0, file.size() - kSuffix.size());
}

}  // namespace

StatusFiles::StatusFiles(const boost::asio::any_io_executor& executor, std::string directory,
                         std::function<void(Names)> on_changed)
    : directory_(std::move(directory)),
      on_changed_(std::move(on_changed)),
      events_(executor),
      settled_(executor) {
  const int fd = ::inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (fd < 0) return;
  events_.assign(fd);
  read();
}

void StatusFiles::watch() {
  // A whole file takes the place of the old one (virFileRewrite in libvirt's src/util/virfile.c).
  if (!events_.is_open() ||
      ::inotify_add_watch(events_.native_handle(), directory_.c_str(), IN_MOVED_TO | IN_DELETE) < 0)
    return;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory_, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name(domain_of(entry->path().filename().string()));
    if (name.empty() || known_.contains(name)) continue;
    if (auto now = content(name)) known_.emplace(name, std::move(*now));
  }
}

std::optional<DomainXml> StatusFiles::content(const std::string& name) const {
  const auto text = read_file(directory_ + "/" + name + ".xml");
  auto parsed = text ? parse_domain_xml(*text) : core::fail(text.error());
  if (!parsed) return std::nullopt;
  return std::move(*parsed);
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
    if (const auto domain = domain_of({name, ::strnlen(name, event.len)}); !domain.empty())
      written_.emplace(domain);
  }
  if (waiting || written_.empty()) return;
  // Counted from the first: however often it is written, it is told.
  settled_.expires_after(kSettle);
  settled_.async_wait([this](const boost::system::error_code& error) {
    if (!error) compare();
  });
}

void StatusFiles::compare() {
  Names changed;
  for (const std::string& name : std::exchange(written_, {})) {
    auto now = content(name);
    if (!now) {
      known_.erase(name);
    } else if (const auto at = known_.find(name); at == known_.end() || at->second != *now) {
      known_.insert_or_assign(name, std::move(*now));
      changed.insert(name);
    }
  }
  if (!changed.empty()) on_changed_(std::move(changed));
}

}  // namespace kvmscope::virt
