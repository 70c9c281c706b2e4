// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/support/catch.h"

namespace kvmscope::virt {

inline std::string read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline bool run(const std::string& command) {
  return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
}

/// tests/support/private-libvirtd.sh, and what it takes to run domains on it: TCG machines that sit in their
/// BIOS.
class PrivateLibvirtd {
 public:
  PrivateLibvirtd() {
    ::signal(SIGPIPE, SIG_IGN);  // libvirt writes to a daemon that was killed
    std::string name = "/var/tmp/kvmscope-virt.XXXXXX";  // on a disk, as images are: /tmp may be none
    REQUIRE(mkdtemp(name.data()) != nullptr);
    dir = name;
    start();
  }
  ~PrivateLibvirtd() {
    run(kScript + " stop " + dir);
    std::filesystem::remove_all(dir);
  }
  PrivateLibvirtd(const PrivateLibvirtd&) = delete;
  PrivateLibvirtd& operator=(const PrivateLibvirtd&) = delete;

  void start() const { REQUIRE(run(kScript + " start " + dir)); }
  std::string uri() const { return "qemu+unix:///system?socket=" + dir + "/run/libvirt-sock"; }
  bool virsh(const std::string& command) const { return run("virsh -c '" + uri() + "' " + command); }
  void signal(int number) const { REQUIRE(::kill(pid(), number) == 0); }
  void kill() const {
    const pid_t was = pid();
    signal(SIGKILL);
    while (::kill(was, 0) == 0) usleep(10'000);
  }
  /// Ends a domain's QEMU while no libvirtd is there to see it, and so to remove its cgroup.
  void kill_domain_unseen(const std::string& name) const {
    REQUIRE(run(kScript + " kill-domain " + dir + " " + name));
  }
  /// As if libvirtd had noted down that a domain of create() has a CPU more: the source looks at it.
  void change_status(const std::string& name) const {
    const std::string status = dir + "/run/qemu/" + name + ".xml";
    std::string text = read(status);
    const auto at = text.find("current='1'");
    REQUIRE(at != std::string::npos);
    text[at + 9] = '2';
    std::ofstream(status + ".new") << text;
    std::filesystem::rename(status + ".new", status);
  }
  unsigned domain_pid(const std::string& name) const {
    return static_cast<unsigned>(std::stoul(read(dir + "/run/qemu/" + name + ".pid")));
  }
  /// A transient domain.
  void create(const std::string& name, const std::string& uuid, const std::string& metadata = "",
              const std::string& disks = "") const {
    std::ofstream(dir + "/domain.xml")
        << "<domain type='qemu'><name>" << name << "</name><uuid>" << uuid << "</uuid><metadata>" << metadata
        << "</metadata><memory unit='MiB'>64</memory><vcpu current='1'>2</vcpu>"
           "<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features><devices>"
           "<emulator>/usr/bin/qemu-system-x86_64</emulator>"
        << disks << "<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>";
    REQUIRE(virsh("create " + dir + "/domain.xml"));
  }
  std::string image(const std::string& name) const {
    std::ofstream(dir + "/" + name) << std::string(1 << 20, 'x');
    return dir + "/" + name;
  }

  std::string dir;

 private:
  pid_t pid() const { return std::stoi(read(dir + "/libvirtd.pid")); }
  static inline const std::string kScript = KVMSCOPE_SOURCE_DIR "/tests/support/private-libvirtd.sh";
};

}  // namespace kvmscope::virt
