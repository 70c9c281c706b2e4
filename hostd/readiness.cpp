// SPDX-License-Identifier: Apache-2.0
#include "hostd/readiness.h"

namespace kvmscope::hostd {

std::optional<Ready> readiness(bool scanned, std::uint32_t spares, std::uint32_t spares_wanted,
                               const tenancy::RegistryStats& slots,
                               std::chrono::steady_clock::duration since_start) {
  if (!scanned) return std::nullopt;
  if (spares >= spares_wanted) return Ready{};
  if (slots.slots_in_use + slots.slots_spare + slots.slots_retiring >= slots.slots_total)
    return Ready{"fewer spare slots than configured: all slots are taken",
                 "raise bpf.max_slots, or lower bpf.spare_slots"};
  if (since_start >= kPoolPatience)
    return Ready{
        "fewer spare slots than configured: they cannot be made, or not as fast as they are taken",
        "see \"install a spare slot\" above: memory (MemoryMax, LimitMEMLOCK) is what is missing most "
        "often; VMs that find no slot are traced when there is one"};
  return std::nullopt;
}

}  // namespace kvmscope::hostd
