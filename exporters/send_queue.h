// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "exporters/stream.h"

namespace kvmscope::exporters {

/// The batches of one signal on their way to one receiver: which goes next, and which goes first when room is
/// short. Pure.
///
/// Metrics are cumulative: a batch is superseded by every newer one, but for the last values of ended VMs
/// (Values::last), which nothing repeats. Log records are never superseded.
///
/// Normally the oldest goes next. In a hurry (the daemon stops) metrics go by what a bill needs: the newest
/// batch, then those with last values, then the others, each newest first; and small batches share a
/// request.
class SendQueue {
 public:
  using Clock = std::chrono::steady_clock;
  using Bytes = std::shared_ptr<const std::string>;

  struct Part {
    Bytes bytes;
    std::size_t items = 0;
  };
  struct Entry {
    Entry(std::uint64_t number, Batch what, Stream::Done then);

    std::uint64_t sequence;
    Batch batch;
    Stream::Done done;
    std::size_t bytes;
    std::size_t finals;  ///< ended VMs whose last values are in it
    bool is_state;       ///< holds repeated values: supersedes those before
    Clock::time_point since = Clock::now();
    bool built = false;
    std::deque<Part> parts;  ///< what is still to be sent, once built
    bool attempted = false;  ///< the front part has been tried before
    bool resolved = false;   ///< only its turn to be told about is awaited
    Stream::Outcome outcome = Stream::Outcome::acknowledged;

    std::size_t items() const;
  };

  SendQueue(Signal signal, std::size_t max_request_bytes)
      : signal_(signal), max_request_bytes_(max_request_bytes) {}

  void push(Entry entry);
  bool empty() const { return entries_.empty(); }
  Entry& front() { return entries_.front(); }
  void pop() { entries_.pop_front(); }
  const std::deque<Entry>& entries() const { return entries_; }

  /// Takes the next request: of the front entry, which must not be resolved, or of several from the front on.
  Bytes claim();
  /// The request that was taken is over: of how many entries from the front on it was.
  std::size_t release() { return std::exchange(claimed_, 0); }
  Entry& at(std::size_t index) { return entries_[index]; }
  /// A request of so many entries was refused: each is to go alone, so that none pays for another.
  void separate(std::size_t entries) { singly_ = entries; }

  /// Not resolved, and in no request that was taken.
  std::size_t waiting() const;
  /// Of the request that was taken.
  std::size_t claimed_bytes() const;

  /// The newest state of the metrics: supersedes all before.
  bool is_newest(const Entry& entry) const { return signal_ == Signal::metrics && entry.sequence == newest_; }

  bool in_hurry() const { return hurry_; }
  void hurry(bool on);

  /// The oldest waiting batch that a newer one supersedes; nullptr if none.
  Entry* oldest_superseded();
  /// The oldest waiting batch that is superseded but for last values.
  Entry* oldest_partly_superseded();
  /// The oldest waiting batch, but the newest state of the metrics only if nothing else is left.
  Entry* oldest();

 private:
  Entry* find_oldest(const std::function<bool(const Entry&)>& matches);
  int rank(const Entry& entry) const;
  void arrange();
  void build(Entry& entry) const;

  Signal signal_;
  std::size_t max_request_bytes_;
  std::deque<Entry> entries_;
  std::size_t claimed_ = 0;
  std::uint64_t newest_ = 0;  ///< the sequence number (from 1) of the newest state, whatever became of it
  std::size_t singly_ = 0;    ///< so many requests more are not to be shared
  bool hurry_ = false;
};

}  // namespace kvmscope::exporters
