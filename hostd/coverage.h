// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "hostd/core/ids.h"
#include "tenancy/registry.h"

namespace kvmscope::hostd {

/// Which running domains are traced, and why the others are not. Pure bookkeeping.
class Coverage {
 public:
  void seen(const core::VmUuid& uuid) {
    running_.insert(uuid);
    problems_.erase(uuid);
  }
  void gone(const core::VmUuid& uuid) {
    running_.erase(uuid);
    problems_.erase(uuid);
  }
  /// libvirt's whole list: whatever else was believed to run does not.
  void listed(const std::vector<core::VmUuid>& uuids);
  /// A running domain that could not be described.
  void problem(const core::VmUuid& uuid, const std::string& name, const std::string& reason) {
    running_.insert(uuid);
    problems_[uuid] = {name, reason};
  }

  struct Problem {
    std::string name;
    std::string reason;
  };
  const std::map<core::VmUuid, Problem>& problems() const { return problems_; }

  struct Summary {
    std::uint64_t running = 0;
    std::uint64_t traced = 0;
    std::map<std::string, std::uint64_t> untraced;  ///< by reason
  };
  Summary summary(const std::vector<const tenancy::Epoch*>& epochs) const;

 private:
  std::set<core::VmUuid> running_;
  std::map<core::VmUuid, Problem> problems_;
};

/// Why this epoch's VM is not (or not wholly) traced; empty if it is.
std::string untraced_reason(const tenancy::Epoch& epoch);

}  // namespace kvmscope::hostd
