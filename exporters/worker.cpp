// SPDX-License-Identifier: Apache-2.0
#include "exporters/worker.h"

#include <pthread.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

namespace kvmscope::exporters {

struct Worker::State {
  std::mutex mutex;
  std::condition_variable ended;
  std::deque<std::function<void()>> jobs;
  bool running = false;

  void run_all() {
    std::unique_lock lock(mutex);
    while (!jobs.empty()) {
      auto job = std::move(jobs.front());
      jobs.pop_front();
      lock.unlock();
      job();
      job = nullptr;  // what it holds goes before anybody is told that it is over
      lock.lock();
    }
    running = false;
    ended.notify_all();
  }
};

Worker::Worker(std::string thread_name, std::chrono::milliseconds grace)
    : thread_name_(std::move(thread_name)), grace_(grace), state_(std::make_shared<State>()) {}

Worker::~Worker() {
  std::unique_lock lock(state_->mutex);
  state_->jobs.clear();
  state_->ended.wait_for(lock, grace_, [this] { return !state_->running; });
}

core::Result<void> Worker::run(std::function<void()> job) {
  const std::lock_guard lock(state_->mutex);
  state_->jobs.push_back(std::move(job));
  if (state_->running) return {};
  try {  // the only way in which std::thread says that there is none to be had
    std::thread([state = state_, name = thread_name_] {
      ::pthread_setname_np(::pthread_self(), name.c_str());
      state->run_all();
    }).detach();
  } catch (const std::system_error& error) {
    state_->jobs.pop_back();
    return core::fail(core::ErrorCode::resource_exhausted, "start a thread: " + error.code().message());
  }
  state_->running = true;
  return {};
}

}  // namespace kvmscope::exporters
