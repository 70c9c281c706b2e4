// SPDX-License-Identifier: Apache-2.0
#include "virt/nics.h"

#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "hostd/core/unique_fd.h"

namespace kvmscope::virt {
namespace {

/// "tun" for a tap; the error's text in parentheses if there is no answer.
std::string driver_of(const core::UniqueFd& any, const std::string& name) {
  ethtool_drvinfo info{};
  info.cmd = ETHTOOL_GDRVINFO;
  ifreq request{};
  std::memcpy(request.ifr_name, name.data(), name.size());
  request.ifr_data = reinterpret_cast<char*>(&info);
  if (::ioctl(any.get(), SIOCETHTOOL, &request) != 0) return "(" + std::string(std::strerror(errno)) + ")";
  return {info.driver, ::strnlen(info.driver, sizeof(info.driver))};
}

std::string examine(core::Nic& nic) {
  if (nic.tap.size() >= IF_NAMESIZE) return nic.tap + ": no interface has such a name";
  const core::UniqueFd any(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  struct stat netns{};
  if (!any || ::stat("/proc/self/ns/net", &netns) != 0) return nic.tap + ": " + std::strerror(errno);
  const unsigned index = ::if_nametoindex(nic.tap.c_str());
  if (index == 0) return nic.tap + ": no such interface in this network namespace";
  const std::string driver = driver_of(any, nic.tap);
  if (driver != "tun") return nic.tap + " is no tap: its driver is " + driver;
  nic.netns = static_cast<std::uint32_t>(netns.st_ino);
  nic.ifindex = index;
  return {};
}

}  // namespace

void resolve_nic(core::Nic& nic) {
  if (!nic.invisible_reason.empty()) return;
  nic.invisible_reason = examine(nic);
}

}  // namespace kvmscope::virt
