// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "hostd/core/result.h"

namespace kvmscope::exporters {

/// A thread for what may block; it exists only while there is something to do. Jobs run one after the other.
/// One that hangs delays nobody but its owner, who goes without it.
/// Threads: used by one.
class Worker {
 public:
  /// `thread_name`: at most 15 bytes. `grace`: how long the destructor waits for a job under way.
  Worker(std::string thread_name, std::chrono::milliseconds grace);
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  /// Jobs that have not begun are left out; one that hangs keeps its thread alone.
  ~Worker();

  /// An error if the system gives no thread: the job is not run then.
  core::Result<void> run(std::function<void()> job);

 private:
  struct State;
  const std::string thread_name_;
  const std::chrono::milliseconds grace_;
  std::shared_ptr<State> state_;  ///< shared with the thread, which may outlive the owner
};

}  // namespace kvmscope::exporters
