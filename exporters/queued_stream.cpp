// SPDX-License-Identifier: Apache-2.0
#include "exporters/queued_stream.h"

#include <algorithm>

namespace kvmscope::exporters {

using std::chrono::milliseconds;

QueuedStream::QueuedStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config,
                           std::shared_ptr<QueueBudget> budget)
    : tenant_(std::move(tenant)),
      config_(std::move(config)),
      executor_(std::move(executor)),
      mailbox_(std::make_shared<Mailbox>(executor_)),
      budget_(std::move(budget)),
      lanes_{Lane(Signal::metrics, executor_, config_.max_request_bytes),
             Lane(Signal::logs, executor_, config_.max_request_bytes)} {
  if (budget_) budget_->join(*this);
}

QueuedStream::~QueuedStream() {
  if (budget_) budget_->leave(*this);
  mailbox_->close();
}

void QueuedStream::submit(Batch batch, Done done) {
  Lane& own = lane(batch.signal());
  const bool mine = batch.tenant() == tenant_;
  Entry entry(next_sequence_++, mine ? std::move(batch) : Batch(tenant_, own.signal), std::move(done));
  if (!mine) {
    ++stats_.refused_batches;
    entry.outcome = Outcome::dropped;
  }
  entry.resolved = entry.batch.empty();
  if (!entry.resolved) {
    stats_.queued_bytes += entry.bytes;
    ++stats_.queued_batches;
    if (own.signal == Signal::metrics && entry.is_state) lost_.newest = false;  // this one is it
  }
  own.queue.push(std::move(entry));
  pump(own);
  trim();
  if (budget_) budget_->enforce();
}

StreamStats QueuedStream::stats() const {
  StreamStats out = stats_;
  const auto now = Clock::now();
  for (const Lane& lane : lanes_) {
    out.waiting_for_credentials |= lane.held;
    const auto& entries = lane.queue.entries();
    const auto oldest = std::ranges::find(entries, false, &Entry::resolved);
    if (oldest == entries.end()) continue;
    const auto age = std::chrono::duration_cast<std::chrono::nanoseconds>(now - oldest->since);
    out.oldest_queued_ns = std::max(out.oldest_queued_ns, static_cast<std::uint64_t>(age.count()));
  }
  out.healthy = out.healthy && !out.waiting_for_credentials;
  return out;
}

// --- attempts

/// Starts the next attempt of a lane if there is something to send and nothing to wait for.
void QueuedStream::pump(Lane& lane) {
  deliver(lane);
  if (lane.busy() || lane.queue.empty()) return;
  look(lane, [this, &lane] { attempt(lane); });
}

void QueuedStream::look(Lane& lane, std::function<void()> then) {
  lane.looking = true;
  look_at_credentials([&lane, then = std::move(then)] {
    lane.looking = false;
    then();
  });
}

void QueuedStream::attempt(Lane& lane) {
  deliver(lane);  // what was at the front may have been dropped meanwhile
  if (lane.queue.empty()) return;
  lane.version = credentials_version();
  if (const auto ready = prepare(); !ready) {
    stats_.last_error = ready.error().message();
    hold(lane);
    return;
  }
  if (!flushes_.empty() && !keeps_up(lane)) {
    lane.queue.hurry(true);
    deliver(lane);
  }
  Entry& front = lane.queue.front();
  if (front.attempted) ++stats_.retried_requests;
  front.attempted = true;
  lane.in_flight = true;
  lane.started_at = Clock::now();
  if (const auto started = start(lane.signal, lane.queue.claim()); !started) {
    finished(lane.signal, {Attempt::Verdict::retry, started.error().message(), 0, std::nullopt});
  }
}

void QueuedStream::finished(Signal signal, const Attempt& attempt) {
  Lane& lane = this->lane(signal);
  const std::size_t entries = lane.queue.release();
  lane.in_flight = false;
  stats_.healthy = attempt.verdict == Attempt::Verdict::ok;
  stats_.last_error = attempt.message;
  if (!stats_.healthy) ++stats_.failed_requests;
  switch (attempt.verdict) {
    case Attempt::Verdict::ok:
      succeeded(lane, entries, attempt);
      break;
    case Attempt::Verdict::refused:
      if (entries > 1) {
        lane.queue.separate(entries);
      } else {
        refused(lane, lane.queue.front());
      }
      break;
    case Attempt::Verdict::retry:
      back_off(lane, attempt);
      break;
    case Attempt::Verdict::unauthenticated:
      ++stats_.auth_failures;
      lane.probe_at = Clock::now() + kPatience * config_.backoff_max;
      look(lane, [this, &lane] {  // perhaps they changed meanwhile: then once more at once
        credentials_version() == lane.version ? hold(lane) : this->attempt(lane);
      });
      break;
  }
  pump(lane);
  trim();
}

void QueuedStream::succeeded(Lane& lane, std::size_t entries, const Attempt& attempt) {
  std::uint64_t items = 0;
  for (std::size_t i = 0; i < entries; ++i) items += lane.queue.at(i).parts.front().items;
  const std::uint64_t rejected = std::min(attempt.rejected_items, items);
  ++stats_.sent_requests;
  stats_.sent_items += items - rejected;
  stats_.rejected_items += rejected;
  lane.pace = Clock::now() - lane.started_at;
  for (std::size_t i = 0; i < entries; ++i) part_done(lane, lane.queue.at(i));
}

void QueuedStream::refused(Lane& lane, Entry& entry) {
  const std::size_t items = entry.parts.front().items;
  stats_.dropped_items_permanent += items;
  lose(lane.signal, items);
  entry.outcome = Outcome::refused;
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
  if (!lane.held) return pump(lane);
  look(lane, [this, &lane] {
    if (lane.held && credentials_version() == lane.version && Clock::now() < lane.probe_at) {
      hold(lane);
      return;
    }
    lane.held = false;
    attempt(lane);
  });
}

// --- what becomes of batches

void QueuedStream::resolve(Entry& entry, Outcome outcome) {
  if (outcome != Outcome::acknowledged) {
    ++lost_.batches;
    lost_.finals += entry.finals;
    lost_.newest |= lane(entry.batch.signal()).queue.is_newest(entry);
  }
  entry.resolved = true;
  entry.outcome = outcome;
  entry.parts.clear();
  entry.batch = Batch(tenant_, entry.batch.signal());
  stats_.queued_bytes -= entry.bytes;
  --stats_.queued_batches;
}

void QueuedStream::lose(Signal signal, std::size_t items) {
  (signal == Signal::metrics ? lost_.points : lost_.records) += items;
}

/// Tells, in order, what became of the batches at the front.
void QueuedStream::deliver(Lane& lane) {
  while (!lane.queue.empty() && lane.queue.front().resolved) {
    Entry& entry = lane.queue.front();
    if (entry.done) {
      mailbox_->post([done = std::move(entry.done), outcome = entry.outcome] { done(outcome); });
    }
    lane.queue.pop();
  }
}

void QueuedStream::trim() {
  const auto waiting_bytes = [this] {
    std::size_t bytes = stats_.queued_bytes;
    for (const Lane& lane : lanes_) bytes -= lane.queue.claimed_bytes();
    return bytes;
  };
  while (waiting_bytes() > config_.queue_bytes) {
    if (drop_spare()) continue;
    // Last values come first again: who gave them offers them anew when they were dropped.
    Entry* oldest = lane(Signal::metrics).queue.oldest();
    if (oldest == nullptr) break;
    drop(*oldest);
  }
  for (Lane& lane : lanes_) deliver(lane);
  finish_flushes();
}

bool QueuedStream::shed() {
  const bool dropped = drop_spare();
  for (Lane& lane : lanes_) deliver(lane);
  finish_flushes();
  return dropped;
}

/// Drops the oldest of what is missed least: superseded metrics, then records. Never last values, nor the
/// newest state.
bool QueuedStream::drop_spare() {
  SendQueue& metrics = lane(Signal::metrics).queue;
  if (Entry* entry = metrics.oldest_superseded()) {
    drop(*entry);
    return true;
  }
  if (Entry* entry = metrics.oldest_partly_superseded()) {
    const std::size_t items = entry->batch.drop_repeated();
    stats_.dropped_items_queue += items;
    lose(Signal::metrics, items);
    stats_.queued_bytes -= entry->bytes - entry->batch.size_bytes();
    entry->bytes = entry->batch.size_bytes();
    return true;
  }
  if (Entry* entry = lane(Signal::logs).queue.oldest()) {
    drop(*entry);
    return true;
  }
  return false;
}

void QueuedStream::drop(Entry& entry) {
  stats_.dropped_items_queue += entry.items();
  lose(entry.batch.signal(), entry.items());
  resolve(entry, Outcome::dropped);
}

// --- the end

void QueuedStream::flush(milliseconds deadline, std::function<void(const Undelivered&)> over) {
  const std::uint64_t id = next_flush_++;
  Flush& flush =
      flushes_.emplace(id, Flush{boost::asio::steady_timer(executor_, deadline), std::move(over), lost_})
          .first->second;
  flush.timer.async_wait([this, box = mailbox_, id](const boost::system::error_code& error) {
    if (error || box->closed()) return;
    if (auto expired = flushes_.extract(id)) end_flush(expired.mapped());
  });
  for (Lane& lane : lanes_) {
    lane.timer.cancel();
    lane.waiting = false;
    lane.held = false;
    if (lane.failures > 0) lane.pace.reset();  // of a receiver that was well
    lane.failures = 0;
    pump(lane);
  }
  finish_flushes();
}

/// Whether all that waits can go in its order: in half of the time left, as quickly as the last request.
bool QueuedStream::keeps_up(const Lane& lane) const {
  if (lane.queue.in_hurry() || lane.failures > 0 || !lane.pace) return false;
  auto left = Clock::duration::max();
  for (const auto& [id, flush] : flushes_) left = std::min(left, flush.timer.expiry() - Clock::now());
  return *lane.pace * static_cast<std::int64_t>(lane.queue.waiting()) < left / 2;
}

void QueuedStream::finish_flushes() {
  if (stats_.queued_batches != 0) return;
  for (auto& [id, flush] : std::exchange(flushes_, {})) end_flush(flush);
}

void QueuedStream::end_flush(Flush& flush) {
  if (flushes_.empty()) {
    for (Lane& lane : lanes_) lane.queue.hurry(false);
  }
  mailbox_->post([over = std::move(flush.over), what = undelivered(flush.before)] { over(what); });
}

Undelivered QueuedStream::undelivered(const Undelivered& before) const {
  Undelivered out = lost_;
  out.batches -= before.batches;
  out.points -= before.points;
  out.records -= before.records;
  out.finals -= before.finals;
  for (const Lane& lane : lanes_) {
    for (const Entry& entry : lane.queue.entries()) {
      if (entry.resolved) continue;
      ++out.batches;
      (lane.signal == Signal::metrics ? out.points : out.records) += entry.items();
      out.finals += entry.finals;
      out.newest |= lane.queue.is_newest(entry);
    }
  }
  return out;
}

}  // namespace kvmscope::exporters
