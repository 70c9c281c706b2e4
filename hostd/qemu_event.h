// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "hostd/core/metric.h"
#include "virt/qmp_wire.h"

namespace kvmscope::hostd {

/// What becomes of something that QEMU said.
struct QemuEvent {
  core::LogRecord record;                  ///< for the tenant, too: names nothing of the host
  std::vector<core::Attribute> operators;  ///< what the operator is told beside that
};

/// Nothing for an event that is nobody's concern outside of QEMU and libvirt. What QEMU says may be a guest's
/// that broke out of it: a tenant gets single words alone, the operator cut text without what is not
/// printable, and both a time between these. Pure.
std::optional<QemuEvent> qemu_event(const virt::QmpEvent& event, std::uint64_t start_unix_ns,
                                    std::uint64_t now_unix_ns);

}  // namespace kvmscope::hostd
