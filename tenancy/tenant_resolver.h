// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tenancy/registry.h"

namespace kvmscope::tenancy {

/// Whose a VM is, and who says so (Epoch::tenancy_source).
struct Owner {
  core::TenantId tenant;
  std::string source;
  bool operator==(const Owner&) const = default;
};

/// Asks the configured sources, in their order.
class TenantResolver {
 public:
  TenantResolver(std::vector<TenancySource> sources, std::vector<TenantRule> rules);

  std::optional<Owner> by_facts(const core::VmFacts& facts) const;
  /// Static rules alone, for a VM of which libvirt never spoke. Stops at a rule that the hint cannot decide:
  /// with all facts that one might have been the first to match.
  std::optional<Owner> by_hint(const ProcessHint& hint) const;

 private:
  std::optional<Owner> by_rules(std::string_view uuid, const std::string& name) const;

  std::vector<TenancySource> sources_;
  std::vector<TenantRule> rules_;
};

}  // namespace kvmscope::tenancy
