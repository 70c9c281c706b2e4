// SPDX-License-Identifier: Apache-2.0
#include "tenancy/tenant_resolver.h"

#include <fnmatch.h>

#include <algorithm>
#include <utility>

namespace kvmscope::tenancy {
namespace {

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

std::optional<Owner> owner(const std::string& tenant, std::string_view source) {
  if (tenant.empty()) return std::nullopt;
  return Owner{{tenant}, std::string(source)};
}

}  // namespace

TenantResolver::TenantResolver(std::vector<TenancySource> sources, std::vector<TenantRule> rules)
    : sources_(std::move(sources)), rules_(std::move(rules)) {
  for (TenantRule& rule : rules_)
    std::transform(rule.uuid.begin(), rule.uuid.end(), rule.uuid.begin(), lower);
}

std::optional<Owner> TenantResolver::by_facts(const core::VmFacts& facts) const {
  for (const TenancySource source : sources_) {
    std::optional<Owner> found;
    switch (source) {
      case TenancySource::nova:
        if (facts.nova) found = owner(facts.nova->project_id, "nova");
        break;
      case TenancySource::own_metadata:
        if (facts.own) found = owner(facts.own->tenant, "own_metadata");
        break;
      case TenancySource::rules:
        found = by_rules(facts.uuid.value, facts.name);
        break;
    }
    if (found) return found;
  }
  return std::nullopt;
}

std::optional<Owner> TenantResolver::by_hint(const ProcessHint& hint) const {
  if (std::find(sources_.begin(), sources_.end(), TenancySource::rules) == sources_.end())
    return std::nullopt;
  return by_rules(hint.uuid.value, hint.guest_name);
}

std::optional<Owner> TenantResolver::by_rules(std::string_view uuid, const std::string& name) const {
  for (const TenantRule& rule : rules_) {
    const bool asks_uuid = !rule.uuid.empty();
    if (asks_uuid ? uuid.empty() : name.empty()) return std::nullopt;
    if (asks_uuid ? rule.uuid == uuid : ::fnmatch(rule.name_pattern.c_str(), name.c_str(), 0) == 0) {
      return owner(rule.tenant.value, "rule");
    }
  }
  return std::nullopt;
}

}  // namespace kvmscope::tenancy
