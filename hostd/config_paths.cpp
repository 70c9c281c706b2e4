// SPDX-License-Identifier: Apache-2.0
#include "hostd/config_paths.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>

#include "hostd/tenant_template.h"

namespace kvmscope::hostd {
namespace {

/// The path without ".N", as which it could be somebody's rotated file.
std::string_view without_rotation(std::string_view path) {
  const std::size_t last = path.find_last_not_of("0123456789");
  if (last == std::string_view::npos || last + 1 == path.size() || path[last] != '.') return path;
  return path.substr(0, last);
}

bool is_escaped(std::string_view word) {
  return !word.empty() && std::ranges::all_of(word, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '%' || c == '~';
  });
}

/// The escaped tenant id for which the template yields this path; empty if there is none.
std::string_view tenant_in(std::string_view path_template, std::string_view path) {
  const std::size_t prefix = path_template.find(kTenantVariable);
  if (prefix == std::string_view::npos) return {};
  std::size_t variables = 0;
  for (std::size_t at = prefix; at != std::string_view::npos;
       at = path_template.find(kTenantVariable, at + 1))
    ++variables;
  const std::size_t fixed = path_template.size() - variables * kTenantVariable.size();
  if (path.size() <= fixed || (path.size() - fixed) % variables != 0) return {};
  const std::string_view word = path.substr(prefix, (path.size() - fixed) / variables);
  std::string again;
  for (std::size_t at = 0; at < path_template.size();) {
    if (path_template.substr(at).starts_with(kTenantVariable)) {
      again += word;
      at += kTenantVariable.size();
    } else {
      again += path_template[at++];
    }
  }
  return again == path && is_escaped(word) ? word : std::string_view{};
}

std::string who(const core::TenantId& tenant) {
  return tenant.value.empty() ? "the operator" : fmt::format("tenant {}", quoted(tenant.value));
}

}  // namespace

void FilePaths::add(core::TenantId tenant, std::string path, unsigned line, std::string key) {
  used_.push_back({std::move(tenant), std::move(path), line, std::move(key)});
}

void FilePaths::check(Problems& problems) const {
  std::map<std::string_view, const Used*> taken;
  for (const Used& used : used_) taken.emplace(used.path, &used);
  for (const Used& used : used_) {
    for (const std::string_view path : {std::string_view(used.path), without_rotation(used.path)}) {
      const auto other = taken.find(path);
      if (other == taken.end() || other->second == &used) continue;
      problems.add(used.line, used.key,
                   fmt::format("is the file of {} too, or one that its rotation makes (got {})",
                               who(other->second->tenant), quoted(used.path)),
                   "give each stream a file of its own");
      break;
    }
    const std::string own = escape_tenant(used.tenant);
    for (const std::string_view word :
         {tenant_in(template_, used.path), tenant_in(template_, without_rotation(used.path)),
          tenant_in(without_rotation(template_), used.path)}) {
      // The tenant's own place in the template is free: its entry replaces the template.
      if (word.empty() || (!used.tenant.value.empty() && word == own)) continue;
      problems.add(used.line, used.key,
                   fmt::format("is what tenants.default.path makes for tenant {}, or its rotation (got {})",
                               quoted(word), quoted(used.path)),
                   "choose a path that the template can never make");
      break;
    }
  }
}

}  // namespace kvmscope::hostd
