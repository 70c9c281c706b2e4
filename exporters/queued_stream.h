// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <map>
#include <random>
#include <vector>

#include "exporters/attempt.h"
#include "exporters/mailbox.h"
#include "exporters/stream.h"

namespace kvmscope::exporters {

/// What every stream does alike: the bounded queue, one request in flight per signal, backoff, breaker,
/// holding for credentials, counting. A derived class makes single attempts.
///
/// Backoff: full jitter below backoff_min * 2^failures, at most backoff_max; from the kBreakerAfter-th
/// failure in a row one attempt per backoff_max. A receiver's own delay is obeyed up to kPatience *
/// backoff_max. A lane that is held for credentials looks at them every second, and makes one attempt every
/// kPatience * backoff_max anyway.
class QueuedStream : public Stream {
 public:
  ~QueuedStream() override { mailbox_->close(); }

  void submit(Batch batch, Done done) final;
  StreamStats stats() const final;
  const StreamConfig& config() const final { return config_; }
  void flush(std::chrono::milliseconds deadline, std::function<void()> idle) final;

 protected:
  using Bytes = std::shared_ptr<const std::string>;

  QueuedStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config);

  /// Makes ready what an attempt needs. On an error the lane is held until credentials_version() changes.
  virtual core::Result<void> prepare() { return {}; }
  /// Starts an attempt, only after prepare() succeeded. Its result comes by finished(), on the executor's
  /// thread and not from within start().
  virtual void start(Signal signal, const Bytes& request) = 0;
  /// Looks at the credentials (thoroughly: at their content); the number grows whenever one has changed.
  virtual std::uint64_t credentials_version(bool /*thorough*/) { return 0; }

  void finished(Signal signal, const Attempt& attempt);
  const std::shared_ptr<Mailbox>& mailbox() const { return mailbox_; }

 private:
  static constexpr unsigned kBreakerAfter = 6;
  static constexpr int kPatience = 10;
  static constexpr std::chrono::milliseconds kCredentialsCheck{1000};
  using Clock = std::chrono::steady_clock;

  struct Part {
    Bytes bytes;
    std::size_t items = 0;
  };
  struct Entry {
    std::uint64_t sequence = 0;
    Batch batch;
    Done done;
    std::size_t bytes = 0;
    Clock::time_point since;
    bool built = false;
    std::deque<Part> parts;  ///< what is still to be sent, once built
    bool attempted = false;  ///< the front part has been tried before
    bool resolved = false;
    Outcome outcome = Outcome::acknowledged;
  };
  /// The batches of one signal, in order. At most one attempt is in flight: the front entry's front part.
  struct Lane {
    Lane(Signal which, const boost::asio::any_io_executor& executor) : signal(which), timer(executor) {}
    Signal signal;
    std::deque<Entry> entries;
    bool in_flight = false;
    bool waiting = false;       ///< the timer will call
    bool held = false;          ///< waiting for credentials
    unsigned failures = 0;      ///< in a row
    std::uint64_t version = 0;  ///< of the credentials used last
    Clock::time_point probe_at;
    boost::asio::steady_timer timer;
  };
  struct Flush {
    boost::asio::steady_timer timer;
    std::function<void()> idle;
  };

  Lane& lane(Signal signal) { return lanes_[static_cast<std::size_t>(signal)]; }
  void pump(Lane& lane);
  void build(Entry& entry) const;
  void succeeded(Lane& lane, Entry& entry, const Attempt& attempt);
  void part_done(Lane& lane, Entry& entry);
  void back_off(Lane& lane, const Attempt& attempt);
  void hold(Lane& lane);
  void wait(Lane& lane, std::chrono::milliseconds delay);
  void timer_fired(Lane& lane);
  void resolve(Entry& entry, Outcome outcome);
  void deliver(Lane& lane);
  void trim();
  bool drop_oldest();
  std::size_t waiting_bytes() const;
  void finish_flushes();
  std::chrono::milliseconds backoff(unsigned failures);

  const core::TenantId tenant_;
  const StreamConfig config_;
  boost::asio::any_io_executor executor_;
  std::shared_ptr<Mailbox> mailbox_;
  std::array<Lane, 2> lanes_;
  std::map<std::uint64_t, Flush> flushes_;
  std::uint64_t next_flush_ = 0;
  std::uint64_t next_sequence_ = 0;
  std::minstd_rand random_{std::random_device{}()};
  StreamStats stats_;
};

}  // namespace kvmscope::exporters
