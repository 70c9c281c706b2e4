// SPDX-License-Identifier: Apache-2.0
#include "tenancy/tenant_table.h"

namespace kvmscope::tenancy {

std::optional<std::uint32_t> TenantTable::index_of(const core::TenantId& tenant, std::uint32_t ring_bytes,
                                                   Actions& out) {
  if (const auto known = index_.find(tenant); known != index_.end()) return known->second;
  std::uint32_t index = 1;
  while (taken_.contains(index)) ++index;
  if (index >= max_tenants_) return std::nullopt;
  taken_.insert(index);
  index_.emplace(tenant, index);
  out.emplace_back(AddTenant{index, tenant, ring_bytes});
  return index;
}

void TenantTable::keep_only(const std::set<std::uint32_t>& in_use, Actions& out) {
  for (auto entry = index_.begin(); entry != index_.end();) {
    if (in_use.contains(entry->second)) {
      ++entry;
      continue;
    }
    out.emplace_back(RemoveTenant{entry->second});
    taken_.erase(entry->second);
    entry = index_.erase(entry);
  }
}

}  // namespace kvmscope::tenancy
