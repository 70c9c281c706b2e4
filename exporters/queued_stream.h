// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <optional>
#include <random>

#include "exporters/attempt.h"
#include "exporters/mailbox.h"
#include "exporters/queue_budget.h"
#include "exporters/send_queue.h"
#include "exporters/stream.h"

namespace kvmscope::exporters {

/// What every stream does alike: the bounded queue, one request in flight per signal, backoff, breaker,
/// holding for credentials, counting. A derived class makes single attempts.
///
/// Backoff: full jitter below backoff_min * 2^failures, at most backoff_max; from the kBreakerAfter-th
/// failure in a row one attempt per backoff_max. A receiver's own delay is obeyed up to kPatience *
/// backoff_max. A lane that is held for credentials looks at them every second, and makes one attempt every
/// kPatience * backoff_max anyway.
class QueuedStream : public Stream, private QueueBudget::Member {
 public:
  QueuedStream(const QueuedStream&) = delete;
  QueuedStream& operator=(const QueuedStream&) = delete;
  ~QueuedStream() override;

  void submit(Batch batch, Done done) final;
  StreamStats stats() const final;
  const StreamConfig& config() const final { return config_; }
  void flush(std::chrono::milliseconds deadline, std::function<void(const Undelivered&)> over) final;

 protected:
  using Bytes = SendQueue::Bytes;

  QueuedStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config,
               std::shared_ptr<QueueBudget> budget);

  /// Looks at the credentials, then calls `looked`: on the executor's thread, perhaps at once, never later
  /// than a second or so whatever the files do.
  virtual void look_at_credentials(const std::function<void()>& looked) { looked(); }
  /// Grows whenever a look has found another credential.
  virtual std::uint64_t credentials_version() const { return 0; }
  /// Makes ready what an attempt needs. On an error the lane is held until credentials_version() changes.
  virtual core::Result<void> prepare() { return {}; }
  /// Starts an attempt, only after prepare() succeeded. Its result comes by finished(), on the executor's
  /// thread and not from within start(). An error is an attempt that failed and is made again.
  virtual core::Result<void> start(Signal signal, const Bytes& request) = 0;

  void finished(Signal signal, const Attempt& attempt);
  const std::shared_ptr<Mailbox>& mailbox() const { return mailbox_; }

 private:
  static constexpr unsigned kBreakerAfter = 6;
  static constexpr int kPatience = 10;
  static constexpr std::chrono::milliseconds kCredentialsCheck{1000};
  using Clock = SendQueue::Clock;
  using Entry = SendQueue::Entry;

  /// The way of one signal. At most one attempt is in flight.
  struct Lane {
    Lane(Signal which, const boost::asio::any_io_executor& executor, std::size_t max_request_bytes)
        : signal(which), queue(which, max_request_bytes), timer(executor) {}
    bool busy() const { return looking || in_flight || waiting; }

    Signal signal;
    SendQueue queue;
    bool looking = false;  ///< at the credentials
    bool in_flight = false;
    bool waiting = false;       ///< the timer will call
    bool held = false;          ///< waiting for credentials
    unsigned failures = 0;      ///< in a row
    std::uint64_t version = 0;  ///< of the credentials used last
    Clock::time_point probe_at;
    Clock::time_point started_at;         ///< the attempt in flight
    std::optional<Clock::duration> pace;  ///< of the last success
    boost::asio::steady_timer timer;
  };
  struct Flush {
    boost::asio::steady_timer timer;
    std::function<void(const Undelivered&)> over;
    Undelivered before;  ///< lost_ when it began
  };

  std::size_t queued_bytes() const override { return stats_.queued_bytes; }
  bool shed() override;

  Lane& lane(Signal signal) { return lanes_[static_cast<std::size_t>(signal)]; }
  void pump(Lane& lane);
  void attempt(Lane& lane);
  void look(Lane& lane, std::function<void()> then);
  void succeeded(Lane& lane, std::size_t entries, const Attempt& attempt);
  void refused(Lane& lane, Entry& entry);
  void part_done(Lane& lane, Entry& entry);
  void back_off(Lane& lane, const Attempt& attempt);
  void hold(Lane& lane);
  void wait(Lane& lane, std::chrono::milliseconds delay);
  void timer_fired(Lane& lane);
  std::chrono::milliseconds backoff(unsigned failures);

  void resolve(Entry& entry, Outcome outcome);
  void lose(Signal signal, std::size_t items);
  void deliver(Lane& lane);
  void trim();
  bool drop_spare();
  void drop(Entry& entry);

  bool keeps_up(const Lane& lane) const;
  void end_flush(Flush& flush);
  void finish_flushes();
  Undelivered undelivered(const Undelivered& before) const;

  const core::TenantId tenant_;
  const StreamConfig config_;
  boost::asio::any_io_executor executor_;
  std::shared_ptr<Mailbox> mailbox_;
  std::shared_ptr<QueueBudget> budget_;
  std::array<Lane, 2> lanes_;
  std::map<std::uint64_t, Flush> flushes_;
  std::uint64_t next_flush_ = 0;
  std::uint64_t next_sequence_ = 1;
  std::minstd_rand random_{std::random_device{}()};
  Undelivered lost_;  ///< refused and dropped so far
  StreamStats stats_;
};

}  // namespace kvmscope::exporters
