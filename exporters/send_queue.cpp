// SPDX-License-Identifier: Apache-2.0
#include "exporters/send_queue.h"

#include <algorithm>

namespace kvmscope::exporters {
namespace {

/// A request of several batches: enough that round trips do not count, too little to be slow by itself.
constexpr std::size_t kSharedRequestBytes = 1U << 20;

}  // namespace

SendQueue::Entry::Entry(std::uint64_t number, Batch what, Stream::Done then)
    : sequence(number),
      batch(std::move(what)),
      done(std::move(then)),
      bytes(batch.size_bytes()),
      finals(batch.finals()),
      is_state(batch.has_repeated()) {}

std::size_t SendQueue::Entry::items() const {
  std::size_t items = batch.items();
  for (const Part& part : parts) items += part.items;
  return items;
}

void SendQueue::push(Entry entry) {
  if (entry.is_state) newest_ = entry.sequence;
  entries_.push_back(std::move(entry));
  if (hurry_) arrange();
}

SendQueue::Bytes SendQueue::claim() {
  build(entries_.front());
  claimed_ = 1;
  const auto may_share = [this](const Entry& entry) {
    return entry.parts.size() == 1 && !is_newest(entry);  // what matters most takes no risk
  };
  const bool alone = !hurry_ || !may_share(entries_.front()) || singly_ > 0;
  if (singly_ > 0) --singly_;
  if (alone) return entries_.front().parts.front().bytes;

  std::size_t bytes = entries_.front().parts.front().bytes->size();
  const std::size_t most = std::min(kSharedRequestBytes, max_request_bytes_);
  for (; claimed_ < entries_.size(); ++claimed_) {
    Entry& next = entries_[claimed_];
    if (next.resolved || bytes + next.bytes > most) break;
    build(next);
    if (!may_share(next)) break;
    bytes += next.parts.front().bytes->size();
  }
  // Requests in a row are a request: their resources are repeated fields. The oldest comes first.
  std::string request;
  request.reserve(bytes);
  for (std::size_t i = 0; i < claimed_; ++i) {
    const std::size_t index = signal_ == Signal::metrics ? claimed_ - 1 - i : i;
    request += *entries_[index].parts.front().bytes;
  }
  return std::make_shared<const std::string>(std::move(request));
}

void SendQueue::build(Entry& entry) const {
  if (entry.built) return;
  entry.built = true;
  for (Batch::Request& request : entry.batch.requests(max_request_bytes_)) {
    entry.parts.push_back({std::make_shared<const std::string>(std::move(request.bytes)), request.items});
  }
  entry.batch = Batch(entry.batch.tenant(), signal_);  // its memory is not needed any more
}

std::size_t SendQueue::waiting() const {
  return static_cast<std::size_t>(
             std::ranges::count_if(entries_, [](const Entry& entry) { return !entry.resolved; })) -
         claimed_;
}

std::size_t SendQueue::claimed_bytes() const {
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < claimed_; ++i) bytes += entries_[i].bytes;
  return bytes;
}

void SendQueue::hurry(bool on) {
  if (hurry_ == on) return;
  hurry_ = on;
  singly_ = 0;
  arrange();
}

/// In a hurry, the place in line.
int SendQueue::rank(const Entry& entry) const {
  if (entry.resolved) return 0;
  if (is_newest(entry)) return 1;
  return entry.finals > 0 ? 2 : 3;
}

void SendQueue::arrange() {
  const auto first = entries_.begin() + static_cast<std::ptrdiff_t>(claimed_);
  if (hurry_ && signal_ == Signal::metrics) {
    std::sort(first, entries_.end(), [this](const Entry& a, const Entry& b) {
      return std::pair(rank(a), b.sequence) < std::pair(rank(b), a.sequence);
    });
  } else {
    std::sort(first, entries_.end(), [](const Entry& a, const Entry& b) { return a.sequence < b.sequence; });
  }
}

SendQueue::Entry* SendQueue::find_oldest(const std::function<bool(const Entry&)>& matches) {
  Entry* oldest = nullptr;
  for (std::size_t i = claimed_; i < entries_.size(); ++i) {
    Entry& entry = entries_[i];
    if (entry.resolved || !matches(entry)) continue;
    if (oldest == nullptr || entry.sequence < oldest->sequence) oldest = &entry;
    if (!hurry_) break;  // they stand in the order of their age
  }
  return oldest;
}

SendQueue::Entry* SendQueue::oldest_superseded() {
  if (signal_ != Signal::metrics) return nullptr;
  return find_oldest([this](const Entry& entry) { return entry.finals == 0 && !is_newest(entry); });
}

SendQueue::Entry* SendQueue::oldest_partly_superseded() {
  if (signal_ != Signal::metrics) return nullptr;
  return find_oldest([this](const Entry& entry) { return entry.batch.has_repeated() && !is_newest(entry); });
}

SendQueue::Entry* SendQueue::oldest() {
  Entry* found = find_oldest([this](const Entry& entry) { return !is_newest(entry); });
  return found != nullptr ? found : find_oldest([](const Entry&) { return true; });
}

}  // namespace kvmscope::exporters
