// SPDX-License-Identifier: Apache-2.0
#include "exporters/queue_budget.h"

#include <algorithm>
#include <utility>

namespace kvmscope::exporters {

void QueueBudget::enforce() {
  std::size_t total = 0;
  for (const Member* member : members_) total += member->queued_bytes();
  if (total <= bytes_) return;

  const std::size_t fair_share = bytes_ / members_.size();
  std::vector<std::pair<std::size_t, Member*>> longest;  // a heap
  for (Member* member : members_) {
    if (member->queued_bytes() > fair_share) longest.emplace_back(member->queued_bytes(), member);
  }
  std::ranges::make_heap(longest);
  while (total > bytes_ && !longest.empty()) {
    std::ranges::pop_heap(longest);
    const auto [before, member] = longest.back();
    longest.pop_back();
    if (!member->shed()) continue;
    const std::size_t now = member->queued_bytes();
    total -= before - now;
    if (now <= fair_share) continue;
    longest.emplace_back(now, member);
    std::ranges::push_heap(longest);
  }
}

}  // namespace kvmscope::exporters
