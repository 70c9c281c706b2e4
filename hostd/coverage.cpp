// SPDX-License-Identifier: Apache-2.0
#include "hostd/coverage.h"

#include <algorithm>

namespace kvmscope::hostd {

void Coverage::listed(const std::vector<core::VmUuid>& uuids) {
  running_ = {uuids.begin(), uuids.end()};
  std::erase_if(problems_, [this](const auto& entry) { return !running_.contains(entry.first); });
}

Coverage::Summary Coverage::summary(const std::vector<const tenancy::Epoch*>& epochs) const {
  std::map<core::VmUuid, std::string> reasons;
  for (const core::VmUuid& uuid : running_) {
    const auto problem = problems_.find(uuid);
    reasons[uuid] = problem != problems_.end() ? problem->second.reason : "no slot yet";
  }
  Summary summary{.running = running_.size(), .traced = 0, .untraced = {}};
  for (const tenancy::Epoch* epoch : epochs) {
    using enum tenancy::EpochState;
    if (!epoch->facts || epoch->state == closed || epoch->state == draining) continue;
    const auto found = reasons.find(epoch->facts->uuid);
    if (found != reasons.end()) found->second = untraced_reason(*epoch);
  }
  for (const auto& [uuid, reason] : reasons) {
    if (reason.empty()) {
      ++summary.traced;
    } else {
      ++summary.untraced[reason];
    }
  }
  return summary;
}

std::string untraced_reason(const tenancy::Epoch& epoch) {
  if (epoch.state == tenancy::EpochState::over_quota) return "the tenant's slots are used up";
  if (!epoch.facts) return {};
  const auto invisible =
      std::ranges::count(epoch.facts->disks, core::DiskBacking::invisible, &core::Disk::backing);
  if (invisible > 0 && static_cast<std::size_t>(invisible) == epoch.facts->disks.size()) {
    return "no disk is visible to the host's block layer";
  }
  return {};
}

}  // namespace kvmscope::hostd
