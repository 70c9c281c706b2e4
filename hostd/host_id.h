// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace kvmscope::hostd {

/// host.id where none is configured: an id derived from /etc/machine-id, which itself must stay on the host
/// (machine-id(5)); the host's name where there is no machine-id.
std::string default_host_id();

}  // namespace kvmscope::hostd
