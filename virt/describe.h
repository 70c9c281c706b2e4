// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "hostd/core/result.h"
#include "hostd/core/vm.h"
#include "virt/cgroups.h"
#include "virt/domain_xml.h"
#include "virt/host_paths.h"

namespace kvmscope::virt {

struct DescribedVm {
  core::VmFacts facts;
  CgroupTree cgroups;  ///< what facts.cgroup_ids were read from
};

/// Adds process, cgroups, helpers and the disks' devices to what the XML said. not_found if no QEMU process
/// is this domain's, or it ended meanwhile. May block (a disk's file system, a process's memory map).
core::Result<DescribedVm> describe_on_host(const HostPaths& paths, DomainXml domain);

}  // namespace kvmscope::virt
