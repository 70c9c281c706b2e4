// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "virt/domain_xml.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto facts = kvmscope::virt::parse_domain_xml({reinterpret_cast<const char*>(data), size});
  // What is accepted has what the rest of the daemon counts on; what is refused says why.
  if (facts && (facts->uuid.value.size() != 36 || facts->name.empty())) std::abort();
  if (facts) {
    for (const auto& disk : facts->disks)
      if (disk.source.empty() == disk.invisible_reason.empty()) std::abort();
  } else if (facts.error().message().empty()) {
    std::abort();
  }
  return 0;
}
