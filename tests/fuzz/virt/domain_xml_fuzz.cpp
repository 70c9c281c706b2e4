// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "virt/domain_xml.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto domain = kvmscope::virt::parse_domain_xml({reinterpret_cast<const char*>(data), size});
  // What is accepted has what the rest of the daemon counts on; what is refused says why.
  if (!domain) {
    if (domain.error().message().empty()) std::abort();
    return 0;
  }
  const auto& facts = domain->facts;
  if (facts.uuid.value.size() != 36 || facts.name.empty()) std::abort();
  if (domain->more_images.size() != facts.disks.size()) std::abort();
  for (const auto& disk : facts.disks)
    if (disk.source.empty() == disk.invisible_reason.empty()) std::abort();
  // An image may bring one data file.
  for (const auto& paths : domain->more_images)
    if (paths.size() > 2 * kvmscope::virt::kMaxMoreImages) std::abort();
  return 0;
}
