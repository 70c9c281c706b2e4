// SPDX-License-Identifier: Apache-2.0
#include "hostd/check_local.h"

#include "bpf/tracer.h"
#include "virt/libvirt_source.h"

namespace kvmscope::hostd {

std::vector<CheckLine> check_host(const std::string& libvirt_uri) {
  std::vector<CheckLine> lines;
  for (const auto& features : {bpf::probe_host(), virt::probe_host(libvirt_uri)}) {
    for (const core::HostFeature& feature : features)
      lines.push_back({feature.name, feature.present, feature.detail, feature.effect});
  }
  return lines;
}

}  // namespace kvmscope::hostd
