// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "hostd/core/ids.h"
#include "hostd/core/result.h"
#include "virt/domain_xml.h"
#include "virt/host_paths.h"

namespace kvmscope::virt {

/// What QEMU was told on its command line (the text of /proc/PID/cmdline).
struct QemuCommandLine {
  core::VmUuid uuid;              ///< -uuid, in lower case
  std::string guest_name;         ///< -name guest=
  bool capability_probe = false;  ///< -machine none
};
QemuCommandLine parse_qemu_command_line(std::string_view cmdline);

/// The QEMU process of a running domain: by libvirt's pid file if that process can be the domain's, else the
/// only one that can. not_found if there is none; invalid_argument if there are several.
///
/// Anybody may start a process with any name and the domain's UUID on its command line. So it must run as the
/// user that libvirt says, and not in another VM's cgroup; and where one is in the domain's own cgroup, which
/// is root's to fill, only such count.
core::Result<core::ProcessKey> find_domain_process(const HostPaths& paths, const DomainXml& domain);

/// False also when the pid is another process's by now, or the process is a zombie.
bool is_alive(const std::string& proc_root, core::ProcessKey process);

}  // namespace kvmscope::virt
