// SPDX-License-Identifier: Apache-2.0
#include "exporters/queued_stream.h"

#include <algorithm>
#include <utility>

namespace kvmscope::exporters {
namespace {

using std::chrono::milliseconds;

/// Refused credentials are offered once more after so many times backoff_max even if no file has changed: the receiver
/// may have been the one that was wrong.
constexpr int kProbeFactor = 10;

std::uint64_t steady_ns() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

}  // namespace

QueuedStream::QueuedStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config)
    : executor_(std::move(executor)),
      tenant_(std::move(tenant)),
      config_(std::move(config)),
      lanes_{Lane(executor_), Lane(executor_)},
      random_(std::random_device{}()),
      flush_deadline_(executor_) {}

void QueuedStream::submit(Batch batch, Done done) {
  if (batch.tenant() != tenant_) {
    ++stats_.refused_batches;
    return done(Outcome::dropped);
  }
  Lane& queue = lane(batch.signal());
  Pending pending;
  pending.requests = batch.requests(config_.max_request_bytes);
  pending.items = batch.items();
  for (const Batch::Request& request : pending.requests) pending.bytes += request.bytes.size();
  pending.queued_at_ns = steady_ns();
  pending.done = std::move(done);
  make_room(queue, pending.bytes);
  stats_.queued_bytes += pending.bytes;
  ++stats_.queued_batches;
  queue.queue.push_back(std::move(pending));
  attempt(batch.signal());
}

/// Drops the oldest batches: series are cumulative, so the newest says what they said. The one under way is kept.
void QueuedStream::make_room(Lane& queue, std::size_t bytes) {
  while (stats_.queued_bytes + bytes > config_.queue_bytes) {
    const auto oldest = queue.queue.begin() + (queue.sending ? 1 : 0);
    if (oldest >= queue.queue.end()) return;
    Pending dropped = std::move(*oldest);
    queue.queue.erase(oldest);
    stats_.queued_bytes -= dropped.bytes;
    --stats_.queued_batches;
    stats_.dropped_items_queue += dropped.items;
    dropped.done(Outcome::dropped);
  }
}

void QueuedStream::attempt(Signal signal) {
  Lane& queue = lane(signal);
  if (queue.sending || queue.queue.empty() || queue.retry.expiry() > std::chrono::steady_clock::now()) return;
  if (queue.queue.front().requests.empty()) return advance(signal);
  queue.sending = true;
  const Pending& first = queue.queue.front();
  send(signal, first.requests[first.next].bytes, [this, signal, alive = std::weak_ptr<bool>(alive_)](SendResult result) {
    if (!alive.expired()) finished(signal, result);
  });
}

void QueuedStream::finished(Signal signal, const SendResult& result) {
  using Verdict = SendResult::Verdict;
  Lane& queue = lane(signal);
  Pending& first = queue.queue.front();
  queue.sending = false;
  queue.holding = result.verdict == Verdict::credentials;
  stats_.healthy = result.verdict == Verdict::ok;
  stats_.last_error = result.message;
  stats_.waiting_for_credentials = lanes_[0].holding || lanes_[1].holding;
  if (result.verdict == Verdict::ok) {
    queue.failures = 0;
    const std::size_t items = first.requests[first.next].items;
    const std::size_t rejected = std::min<std::size_t>(items, result.rejected_items);
    ++stats_.sent_requests;
    stats_.rejected_items += rejected;
    stats_.sent_items += items - rejected;
    return advance(signal);
  }
  ++stats_.failed_requests;
  switch (result.verdict) {
    case Verdict::ok:
      return;
    case Verdict::permanent:
      stats_.dropped_items_permanent += first.requests[first.next].items;
      first.lost = true;
      return advance(signal);
    case Verdict::credentials:
      ++stats_.auth_failures;
      return wait(signal, config_.backoff_max * kProbeFactor);
    case Verdict::retry:
      ++stats_.retried_requests;
      return wait(signal, std::max(backoff(queue.failures++), result.retry_after.value_or(milliseconds(0))));
  }
}

/// The first request of the queue is done with; so may be its batch.
void QueuedStream::advance(Signal signal) {
  Lane& queue = lane(signal);
  Pending& first = queue.queue.front();
  if (!first.requests.empty()) ++first.next;
  if (first.next >= first.requests.size()) {
    const Pending done = std::move(first);
    queue.queue.pop_front();
    stats_.queued_bytes -= done.bytes;
    --stats_.queued_batches;
    done.done(done.lost ? Outcome::dropped : Outcome::acknowledged);
  }
  attempt(signal);
  check_idle();
}

milliseconds QueuedStream::backoff(unsigned failures) {
  const auto doubled = config_.backoff_min * (1U << std::min(failures, 16U));
  const auto ceiling = std::min<milliseconds>(doubled, config_.backoff_max);
  return milliseconds(std::uniform_int_distribution<milliseconds::rep>(ceiling.count() / 2, ceiling.count())(random_));
}

void QueuedStream::wait(Signal signal, milliseconds delay) {
  Lane& queue = lane(signal);
  queue.retry.expires_after(delay);
  queue.retry.async_wait([this, signal](const boost::system::error_code& error) {
    if (!error) attempt(signal);
  });
}

void QueuedStream::credentials_changed() {
  for (const Signal signal : {Signal::metrics, Signal::logs}) {
    Lane& queue = lane(signal);
    if (!queue.holding) continue;
    queue.holding = false;
    queue.retry.expires_at(boost::asio::steady_timer::time_point::min());
    attempt(signal);
  }
  stats_.waiting_for_credentials = false;
}

StreamStats QueuedStream::stats() const {
  StreamStats now = stats_;
  std::uint64_t oldest = 0;
  for (const Lane& queue : lanes_) {
    if (queue.queue.empty()) continue;
    oldest = std::max(oldest, steady_ns() - queue.queue.front().queued_at_ns);
  }
  now.oldest_queued_ns = oldest;
  return now;
}

void QueuedStream::flush(milliseconds deadline, std::function<void()> idle) {
  idle_ = std::move(idle);
  flush_deadline_.expires_after(deadline);
  flush_deadline_.async_wait([this](const boost::system::error_code& error) {
    if (!error && idle_) std::exchange(idle_, nullptr)();
  });
  for (const Signal signal : {Signal::metrics, Signal::logs}) {
    lane(signal).retry.expires_at(boost::asio::steady_timer::time_point::min());
    attempt(signal);
  }
  check_idle();
}

void QueuedStream::check_idle() {
  if (!idle_ || stats_.queued_batches > 0) return;
  flush_deadline_.cancel();
  std::exchange(idle_, nullptr)();
}

}  // namespace kvmscope::exporters
