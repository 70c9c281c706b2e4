// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

namespace kvmscope::virt {

/// A few threads for calls that may never return. A call can be given up: its thread is then replaced by a
/// fresh one, and ends by itself when the call does return, if ever. A given-up call may outlive the pool, so
/// a call must own all that it touches.
class CallPool {
 public:
  using CallId = std::uint64_t;

  explicit CallPool(unsigned threads);
  /// Waits for running calls up to `patience` of the last stop(), then leaves them to themselves.
  ~CallPool();
  CallPool(const CallPool&) = delete;
  CallPool& operator=(const CallPool&) = delete;

  /// Any thread.
  void submit(CallId id, std::function<void()> call);
  /// False if there is nothing to give up: the call has returned already, or has not begun (on a busy machine
  /// even a free thread may take long to wake up). It will then begin all the same: ask again later.
  bool abandon(CallId id);
  /// Drops what has not begun and waits for the rest, at most that long. True if all threads ended.
  bool stop(std::chrono::milliseconds patience);

 private:
  struct State;
  static void work(const std::shared_ptr<State>& state);
  static void start_thread(const std::shared_ptr<State>& state);
  std::shared_ptr<State> state_;
};

}  // namespace kvmscope::virt
