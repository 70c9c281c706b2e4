// SPDX-License-Identifier: Apache-2.0
#include "hostd/check_local.h"

#include <utility>

#include "bpf/tracer.h"
#include "virt/libvirt_source.h"

namespace kvmscope::hostd {
namespace {

/// The rooms say the same in types of their own.
template <typename Feature>
void append(std::vector<CheckLine>& lines, std::vector<Feature> features) {
  for (Feature& feature : features)
    lines.push_back(
        {std::move(feature.name), feature.present, std::move(feature.detail), std::move(feature.effect)});
}

}  // namespace

std::vector<CheckLine> check_host(const std::string& libvirt_uri) {
  std::vector<CheckLine> lines;
  append(lines, bpf::probe_host());
  append(lines, virt::probe_host(libvirt_uri));
  return lines;
}

}  // namespace kvmscope::hostd
