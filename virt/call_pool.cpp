// SPDX-License-Identifier: Apache-2.0
#include "virt/call_pool.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

namespace kvmscope::virt {

struct CallPool::State {
  struct Call {
    CallId id;
    std::function<void()> run;
  };
  std::mutex mutex;
  std::condition_variable work_or_stop;
  std::condition_variable thread_ended;
  std::deque<Call> waiting;
  std::set<CallId> running;  ///< and not given up
  unsigned threads = 0;      ///< those of given-up calls not counted
  bool stopping = false;
};

CallPool::CallPool(unsigned threads) : state_(std::make_shared<State>()) {
  const std::lock_guard lock(state_->mutex);
  for (unsigned i = 0; i < threads; ++i) start_thread(state_);
}

CallPool::~CallPool() {
  stop(std::chrono::milliseconds(0));
}

// With the mutex held. Detached: a thread whose call never returns can be joined by nobody.
void CallPool::start_thread(const std::shared_ptr<State>& state) {
  std::thread([state] { work(state); }).detach();
  ++state->threads;
}

void CallPool::work(const std::shared_ptr<State>& state) {
  std::unique_lock lock(state->mutex);
  for (;;) {
    state->work_or_stop.wait(lock, [&] { return state->stopping || !state->waiting.empty(); });
    if (state->stopping) break;
    State::Call call = std::move(state->waiting.front());
    state->waiting.pop_front();
    state->running.insert(call.id);
    lock.unlock();
    call.run();
    call.run = nullptr;  // what it owns goes before the call counts as returned
    lock.lock();
    if (state->running.erase(call.id) == 0) return;  // given up; another thread has taken our place
  }
  --state->threads;
  state->thread_ended.notify_all();
}

void CallPool::submit(CallId id, std::function<void()> call) {
  const std::lock_guard lock(state_->mutex);
  if (state_->stopping) return;
  state_->waiting.push_back({id, std::move(call)});
  state_->work_or_stop.notify_one();
}

bool CallPool::abandon(CallId id) {
  const std::lock_guard lock(state_->mutex);
  if (state_->running.erase(id) == 0) return false;
  --state_->threads;
  if (!state_->stopping) start_thread(state_);
  return true;
}

bool CallPool::stop(std::chrono::milliseconds patience) {
  std::unique_lock lock(state_->mutex);
  state_->stopping = true;
  state_->waiting.clear();
  state_->work_or_stop.notify_all();
  return state_->thread_ended.wait_for(lock, patience, [&] { return state_->threads == 0; });
}

}  // namespace kvmscope::virt
