// SPDX-License-Identifier: Apache-2.0
#include "virt/describe.h"

#include <utility>

#include "virt/disks.h"
#include "virt/libvirt_source.h"
#include "virt/nics.h"
#include "virt/processes.h"

namespace kvmscope::virt {
namespace {

bool is_below(const std::string& path, const std::string& directory) {
  return path == directory || path.starts_with(directory + "/");
}

struct Members {
  std::vector<core::ProcessKey> helpers;
  bool shared = false;  ///< another VM's QEMU is among them
};

Members find_members(const HostPaths& paths, const core::VmFacts& facts, const CgroupTree& tree) {
  Members members;
  for (const std::uint32_t pid : member_pids(tree)) {
    if (pid == facts.process.tgid) continue;
    const auto key = process_key(paths.proc_root, pid);
    const auto process = key ? describe_qemu(paths.proc_root, *key) : core::fail(key.error());
    if (!process || !is_below(process->cgroup_path, facts.cgroup_path)) continue;  // gone or moved meanwhile
    if (!process->uuid.value.empty() && process->uuid != facts.uuid) members.shared = true;
    members.helpers.push_back(*key);
  }
  return members;
}

}  // namespace

core::Result<DescribedVm> describe_on_host(const HostPaths& paths, DomainXml domain) {
  const auto process = find_domain_process(paths, domain);
  if (!process) return core::fail(process.error());
  core::VmFacts facts = std::move(domain.facts);
  facts.process = *process;
  for (std::size_t i = 0; i < facts.disks.size(); ++i) resolve_disk(facts.disks[i], domain.more_images[i]);

  for (core::Nic& nic : facts.nics) resolve_nic(nic);

  const auto qemu = describe_qemu(paths.proc_root, facts.process);
  if (!qemu) return core::fail(qemu.error());
  DescribedVm vm{std::move(facts), {}};
  vm.facts.cgroup_path = paths.cgroup_root.empty() ? "" : vm_directory(qemu->cgroup_path);
  if (!vm.facts.cgroup_path.empty()) {
    vm.cgroups = read_cgroup_tree(paths.cgroup_root + vm.facts.cgroup_path);
    vm.facts.cgroup_ids = cgroup_ids(vm.cgroups);
    Members members = find_members(paths, vm.facts, vm.cgroups);
    vm.facts.helpers = std::move(members.helpers);
    if (members.shared || vm.cgroups.empty()) {  // then only the process itself is surely this VM's
      vm.cgroups.clear();
      vm.facts.cgroup_path.clear();
      vm.facts.cgroup_ids.clear();
      vm.facts.helpers.clear();
    }
  }
  if (!is_alive(paths.proc_root, vm.facts.process))
    return core::fail(core::ErrorCode::not_found, "the QEMU process has just ended");
  return vm;
}

}  // namespace kvmscope::virt
