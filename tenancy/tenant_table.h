// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>

#include "tenancy/registry.h"

namespace kvmscope::tenancy {

/// Tenants' places in the kernel's table of rings: 1 .. max_tenants-1, for 0 is the host's.
class TenantTable {
 public:
  explicit TenantTable(std::uint32_t max_tenants) : max_tenants_(max_tenants) {}

  /// The tenant's index; a new tenant is added. Nothing if all are taken.
  std::optional<std::uint32_t> index_of(const core::TenantId& tenant, std::uint32_t ring_bytes, Actions& out);
  /// Removes all but these.
  void keep_only(const std::set<std::uint32_t>& in_use, Actions& out);

 private:
  std::uint32_t max_tenants_;
  std::map<core::TenantId, std::uint32_t> index_;
  std::set<std::uint32_t> taken_;
};

}  // namespace kvmscope::tenancy
