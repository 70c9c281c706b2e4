// SPDX-License-Identifier: Apache-2.0
#include "exporters/queued_stream.h"

#include <algorithm>

namespace kvmscope::exporters {

using std::chrono::milliseconds;

QueuedStream::QueuedStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config)
    : tenant_(std::move(tenant)),
      config_(std::move(config)),
      executor_(std::move(executor)),
      mailbox_(std::make_shared<Mailbox>(executor_)),
      lanes_{Lane(Signal::metrics, executor_), Lane(Signal::logs, executor_)} {}

void QueuedStream::submit(Batch batch, Done done) {
  Lane& own = lane(batch.signal());
  const bool mine = batch.tenant() == tenant_;
  Entry entry{.sequence = next_sequence_++,
              .batch = std::move(batch),
              .done = std::move(done),
              .bytes = 0,
              .since = Clock::now(),
              .parts = {}};
  if (mine) {
    entry.bytes = entry.batch.size_bytes();
    stats_.queued_bytes += entry.bytes;
    ++stats_.queued_batches;
    own.entries.push_back(std::move(entry));
  } else {
    ++stats_.refused_batches;
    entry.batch = Batch(tenant_, own.signal);
    entry.resolved = true;
    entry.outcome = Outcome::dropped;
    own.entries.push_back(std::move(entry));
  }
  pump(own);
  trim();
}

StreamStats QueuedStream::stats() const {
  StreamStats out = stats_;
  const auto now = Clock::now();
  for (const Lane& lane : lanes_) {
    out.waiting_for_credentials |= lane.held;
    const auto oldest = std::find_if(lane.entries.begin(), lane.entries.end(),
                                     [](const Entry& entry) { return !entry.resolved; });
    if (oldest == lane.entries.end()) continue;
    const auto age = std::chrono::duration_cast<std::chrono::nanoseconds>(now - oldest->since);
    out.oldest_queued_ns = std::max(out.oldest_queued_ns, static_cast<std::uint64_t>(age.count()));
  }
  out.healthy = out.healthy && !out.waiting_for_credentials;
  return out;
}

void QueuedStream::flush(milliseconds deadline, std::function<void()> idle) {
  const std::uint64_t id = next_flush_++;
  Flush& flush = flushes_.emplace(id, Flush{boost::asio::steady_timer(executor_, deadline), std::move(idle)})
                     .first->second;
  flush.timer.async_wait([this, box = mailbox_, id](const boost::system::error_code& error) {
    if (error || box->closed()) return;
    if (auto expired = flushes_.extract(id)) expired.mapped().idle();
  });
  for (Lane& lane : lanes_) {
    lane.timer.cancel();
    lane.waiting = false;
    lane.held = false;
    pump(lane);
  }
  finish_flushes();
}

/// Starts the next attempt of a lane if there is something to send and nothing to wait for.
void QueuedStream::pump(Lane& lane) {
  deliver(lane);
  while (!lane.in_flight && !lane.waiting && !lane.entries.empty()) {
    Entry& entry = lane.entries.front();
    build(entry);
    if (entry.parts.empty()) {  // nothing was in it
      resolve(entry, entry.outcome);
      deliver(lane);
      continue;
    }
    lane.version = credentials_version(false);
    if (const auto ready = prepare(); !ready) {
      stats_.last_error = ready.error().message();
      hold(lane);
      return;
    }
    if (entry.attempted) ++stats_.retried_requests;
    entry.attempted = true;
    lane.in_flight = true;
    start(lane.signal, entry.parts.front().bytes);
  }
}

void QueuedStream::build(Entry& entry) const {
  if (entry.built) return;
  entry.built = true;
  for (Batch::Request& request : entry.batch.requests(config_.max_request_bytes)) {
    entry.parts.push_back({std::make_shared<const std::string>(std::move(request.bytes)), request.items});
  }
  entry.batch = Batch(tenant_, entry.batch.signal());  // its memory is not needed any more
}

void QueuedStream::finished(Signal signal, const Attempt& attempt) {
  Lane& lane = this->lane(signal);
  Entry& entry = lane.entries.front();
  lane.in_flight = false;
  stats_.healthy = attempt.verdict == Attempt::Verdict::ok;
  stats_.last_error = attempt.message;
  if (!stats_.healthy) ++stats_.failed_requests;
  switch (attempt.verdict) {
    case Attempt::Verdict::ok:
      succeeded(lane, entry, attempt);
      break;
    case Attempt::Verdict::refused:
      stats_.dropped_items_permanent += entry.parts.front().items;
      entry.outcome = Outcome::dropped;
      part_done(lane, entry);
      break;
    case Attempt::Verdict::retry:
      back_off(lane, attempt);
      break;
    case Attempt::Verdict::unauthenticated:
      ++stats_.auth_failures;
      lane.probe_at = Clock::now() + kPatience * config_.backoff_max;
      if (credentials_version(true) == lane.version)
        hold(lane);  // else they changed meanwhile: once more at once
      break;
  }
  pump(lane);
  trim();
}

void QueuedStream::succeeded(Lane& lane, Entry& entry, const Attempt& attempt) {
  const std::uint64_t items = entry.parts.front().items;
  const std::uint64_t rejected = std::min(attempt.rejected_items, items);
  ++stats_.sent_requests;
  stats_.sent_items += items - rejected;
  stats_.rejected_items += rejected;
  part_done(lane, entry);
}

void QueuedStream::part_done(Lane& lane, Entry& entry) {
  lane.failures = 0;
  entry.parts.pop_front();
  entry.attempted = false;
  if (entry.parts.empty()) resolve(entry, entry.outcome);
}

void QueuedStream::back_off(Lane& lane, const Attempt& attempt) {
  milliseconds delay = backoff(lane.failures++);
  if (attempt.retry_after) {
    delay = std::max(delay, std::min(*attempt.retry_after, kPatience * config_.backoff_max));
  }
  wait(lane, delay);
}

milliseconds QueuedStream::backoff(unsigned failures) {
  const auto longest = config_.backoff_max.count();
  const auto uniform = [this](std::int64_t low, std::int64_t high) {
    return milliseconds(std::uniform_int_distribution<std::int64_t>(low, high)(random_));
  };
  if (failures + 1 >= kBreakerAfter) return uniform(longest, longest + longest / 10);
  return uniform(0, std::min(longest, config_.backoff_min.count() << failures));
}

void QueuedStream::hold(Lane& lane) {
  if (!lane.held && lane.probe_at <= Clock::now())
    lane.probe_at = Clock::now() + kPatience * config_.backoff_max;
  lane.held = true;
  wait(lane, std::min(kCredentialsCheck, kPatience * config_.backoff_max));
}

void QueuedStream::wait(Lane& lane, milliseconds delay) {
  lane.waiting = true;
  lane.timer.expires_after(delay);
  lane.timer.async_wait([this, box = mailbox_, &lane](const boost::system::error_code& error) {
    // A flush may have cancelled the wait when this was already on its way.
    if (error || box->closed() || lane.timer.expiry() > Clock::now()) return;
    if (lane.waiting) timer_fired(lane);
  });
}

void QueuedStream::timer_fired(Lane& lane) {
  lane.waiting = false;
  if (lane.held && credentials_version(true) == lane.version && Clock::now() < lane.probe_at) {
    hold(lane);
    return;
  }
  lane.held = false;
  pump(lane);
}

void QueuedStream::resolve(Entry& entry, Outcome outcome) {
  entry.resolved = true;
  entry.outcome = outcome;
  entry.parts.clear();
  entry.batch = Batch(tenant_, entry.batch.signal());
  stats_.queued_bytes -= entry.bytes;
  --stats_.queued_batches;
}

/// Tells, in order, what became of the batches at the front.
void QueuedStream::deliver(Lane& lane) {
  while (!lane.entries.empty() && lane.entries.front().resolved) {
    Entry& entry = lane.entries.front();
    if (entry.done) {
      mailbox_->post([done = std::move(entry.done), outcome = entry.outcome] { done(outcome); });
    }
    lane.entries.pop_front();
  }
}

std::size_t QueuedStream::waiting_bytes() const {
  std::size_t bytes = stats_.queued_bytes;
  for (const Lane& lane : lanes_) {
    if (lane.in_flight) bytes -= lane.entries.front().bytes;
  }
  return bytes;
}

void QueuedStream::trim() {
  while (waiting_bytes() > config_.queue_bytes && drop_oldest()) {
  }
  for (Lane& lane : lanes_) deliver(lane);
  finish_flushes();
}

/// Values are cumulative: what is newest matters most.
bool QueuedStream::drop_oldest() {
  Entry* oldest = nullptr;
  for (Lane& lane : lanes_) {
    for (auto entry = lane.entries.begin() + (lane.in_flight ? 1 : 0); entry != lane.entries.end(); ++entry) {
      if (entry->resolved) continue;
      if (oldest == nullptr || entry->sequence < oldest->sequence) oldest = &*entry;
      break;
    }
  }
  if (oldest == nullptr) return false;
  std::size_t items = oldest->batch.items();
  for (const Part& part : oldest->parts) items += part.items;
  stats_.dropped_items_queue += items;
  resolve(*oldest, Outcome::dropped);
  return true;
}

void QueuedStream::finish_flushes() {
  if (stats_.queued_batches != 0) return;
  for (auto& [id, flush] : flushes_) mailbox_->post(std::move(flush.idle));
  flushes_.clear();
}

}  // namespace kvmscope::exporters
