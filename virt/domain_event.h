// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "hostd/core/ids.h"

namespace kvmscope::virt {

struct DomainEvent {
  core::VmUuid uuid;
  std::string name;
  bool stopped = false;  ///< else: it started, or something about it may have changed
};

struct ListedDomain {
  core::VmUuid uuid;
  std::string name;
};

}  // namespace kvmscope::virt
