// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <thread>

#include "hostd/core/result.h"

namespace kvmscope::virt {

/// libvirt's default event loop on a thread of its own, for as long as the object lives. The loop is
/// libvirt's, one a process: already_exists while another object runs it.
class EventLoop {
 public:
  static core::Result<std::unique_ptr<EventLoop>> start();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

 private:
  explicit EventLoop(int timer);
  void run() noexcept;

  int timer_;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

/// Makes libvirt known to this process: registers the loop, silences its own messages on stderr. Idempotent.
core::Result<void> initialize_libvirt();

}  // namespace kvmscope::virt
