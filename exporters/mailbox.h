// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/post.hpp>
#include <memory>
#include <mutex>
#include <utility>

namespace kvmscope::exporters {

/// How other threads reach an object that lives on the executor's thread and may die before they are done.
/// Shared between the two; the object closes it when it is destroyed, and from then on nothing is posted or
/// run.
class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  explicit Mailbox(boost::asio::any_io_executor executor) : executor_(std::move(executor)) {}

  /// Runs `task` on the executor's thread, unless the box is closed by then. Any thread.
  template <typename Task>
  void post(Task task) {
    const std::lock_guard lock(mutex_);  // the executor may be gone as soon as close() has returned
    if (closed_) return;
    boost::asio::post(executor_, [self = shared_from_this(), task = std::move(task)]() mutable {
      if (!self->closed()) task();
    });
  }

  /// On the executor's thread only.
  bool closed() const { return closed_; }
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }

 private:
  boost::asio::any_io_executor executor_;
  std::mutex mutex_;
  bool closed_ = false;
};

}  // namespace kvmscope::exporters
