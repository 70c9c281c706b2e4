// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

#include "hostd/config_section.h"
#include "hostd/core/ids.h"

namespace kvmscope::hostd {

/// The files that streams are written to, to make sure that no two streams ever share one: neither two
/// overrides, nor an override and a tenant served by the template, nor one's file and the other's rotated one
/// (path.1, path.2 ...).
class FilePaths {
 public:
  /// The template of all tenants without a path of their own.
  void set_template(std::string path) { template_ = std::move(path); }
  /// One stream's file; an empty tenant is the operator.
  void add(core::TenantId tenant, std::string path, unsigned line, std::string key);
  void check(Problems& problems) const;

 private:
  struct Used {
    core::TenantId tenant;
    std::string path;
    unsigned line;
    std::string key;
  };
  std::string template_;
  std::vector<Used> used_;
};

}  // namespace kvmscope::hostd
