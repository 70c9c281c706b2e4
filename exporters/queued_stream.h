// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "exporters/stream.h"

namespace kvmscope::exporters {

/// What became of one attempt to hand a request over.
struct SendResult {
  enum class Verdict {
    ok,
    retry,        ///< try again, no sooner than retry_after if that is set
    permanent,    ///< this request will never be taken: drop it
    credentials,  ///< refused for who we are: hold it until the credentials change
  } verdict = Verdict::ok;
  std::optional<std::chrono::milliseconds> retry_after;
  std::uint64_t rejected_items = 0;  ///< partial success
  std::string message;               ///< one line, no secret; with ok: the receiver's warning
};

/// Queue, order, backoff and figures of a stream; what is left to the kinds of streams is one attempt.
///
/// One request per signal is under way at a time, so a series' points arrive in order. Attempts that fail are repeated
/// with exponential backoff and jitter, from backoff_min to backoff_max.
class QueuedStream : public Stream {
 public:
  void submit(Batch batch, Done done) final;
  StreamStats stats() const final;
  const StreamConfig& config() const final { return config_; }
  void flush(std::chrono::milliseconds deadline, std::function<void()> idle) final;

 protected:
  QueuedStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config);

  using Reply = std::function<void(SendResult)>;
  /// One attempt. `reply` is called once, on the executor's thread, and not from inside send().
  virtual void send(Signal signal, const std::string& request, Reply reply) = 0;

  /// The credentials have changed (or are there at last): what was held for them is tried now.
  void credentials_changed();
  const boost::asio::any_io_executor& executor() const { return executor_; }

 private:
  struct Pending {
    std::vector<Batch::Request> requests;
    std::size_t next = 0;  ///< requests before it are done
    std::size_t bytes = 0;
    std::size_t items = 0;
    bool lost = false;  ///< one of its requests was refused for good
    std::uint64_t queued_at_ns = 0;
    Done done;
  };
  /// The queue of one signal.
  struct Lane {
    explicit Lane(const boost::asio::any_io_executor& executor) : retry(executor) {}
    std::deque<Pending> queue;
    bool sending = false;
    bool holding = false;  ///< refused for credentials
    unsigned failures = 0;
    boost::asio::steady_timer retry;
  };

  Lane& lane(Signal signal) { return lanes_[signal == Signal::metrics ? 0 : 1]; }
  void attempt(Signal signal);
  void finished(Signal signal, const SendResult& result);
  void advance(Signal signal);
  void wait(Signal signal, std::chrono::milliseconds delay);
  std::chrono::milliseconds backoff(unsigned failures);
  void make_room(Lane& lane, std::size_t bytes);
  void check_idle();

  boost::asio::any_io_executor executor_;
  core::TenantId tenant_;
  StreamConfig config_;
  StreamStats stats_;
  std::array<Lane, 2> lanes_;
  std::minstd_rand random_;
  std::function<void()> idle_;
  boost::asio::steady_timer flush_deadline_;
  /// Gone with the stream: replies that come later find it expired.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace kvmscope::exporters
