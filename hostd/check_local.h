// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "hostd/views.h"

namespace kvmscope::hostd {

/// What this host, and this process on it, can do: kernel, privilege, libvirt. Loads nothing that stays.
/// Blocks while libvirt is asked: not for the loop's thread.
std::vector<CheckLine> check_host(const std::string& libvirt_uri);

}  // namespace kvmscope::hostd
