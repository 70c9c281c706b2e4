// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hostd/table.h"
#include "hostd/views.h"

namespace kvmscope::hostd {

// What `kvmscope` prints for people. Pure.

std::string render_vms(std::vector<VmView> vms, std::uint64_t now_unix_ns, const Screen& screen);
std::string render_tenants(std::vector<TenantView> tenants, const Screen& screen);
/// Disks, then CPUs; busiest first; at most `lines` lines of tables (0: all), and how many more there are.
std::string render_top(TopView top, std::size_t lines, const Screen& screen);
std::string render_check(const std::vector<CheckLine>& lines, const Screen& screen);

}  // namespace kvmscope::hostd
