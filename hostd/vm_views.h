// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "bpf/tracer.h"
#include "hostd/core/vm.h"
#include "hostd/coverage.h"
#include "hostd/slot_keeper.h"
#include "hostd/stream_set.h"
#include "hostd/views.h"
#include "tenancy/registry.h"
#include "virt/libvirt_source.h"

namespace kvmscope::hostd {

/// What `kvmscope vms` shows: every epoch that has not closed, and the domains that could not be described.
std::vector<VmView> vm_views(const tenancy::Registry& registry, SlotKeeper& keeper, const Coverage& coverage);

/// What `kvmscope tenants` shows: the operator's stream first, then every tenant with a VM or a stream.
std::vector<TenantView> tenant_views(const tenancy::Registry& registry, const StreamSet& streams,
                                     const bpf::Tracer& tracer);

/// What `kvmscope check` shows of a running daemon: the host as found at start, the programs and libvirt as
/// they are.
std::vector<CheckLine> check_lines(const std::vector<CheckLine>& host, const virt::ConnectionState& libvirt,
                                   const bpf::Tracer& tracer);

}  // namespace kvmscope::hostd
