// SPDX-License-Identifier: Apache-2.0
// Two ways in which a look at one domain does not return, though libvirtd is well.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <utility>

#include "hostd/core/unique_fd.h"
#include "tests/support/catch.h"

namespace kvmscope::virt {

/// A file system that never answers (nobody serves it), mounted over a directory as a dead NFS server's. Only
/// for this process: the private libvirtd and its QEMUs have their mounts to themselves.
class HungDirectory {
 public:
  explicit HungDirectory(std::string path)
      : path_(std::move(path)), fd_(::open("/dev/fuse", O_RDWR | O_CLOEXEC)) {
    REQUIRE(fd_);
    const std::string options =
        "fd=" + std::to_string(fd_.get()) + ",rootmode=40000,user_id=0,group_id=0,allow_other";
    REQUIRE(::mount("kvmscope-test", path_.c_str(), "fuse", 0, options.c_str()) == 0);
  }
  /// What waits for it goes on, with an error.
  ~HungDirectory() {
    fd_.reset();
    ::umount2(path_.c_str(), MNT_DETACH);
  }
  HungDirectory(const HungDirectory&) = delete;
  HungDirectory& operator=(const HungDirectory&) = delete;

 private:
  std::string path_;
  core::UniqueFd fd_;
};

/// A process that does not end when it is told to, nor when it is killed: as one in the midst of I/O that
/// does not return. libvirt waits for it with the domain's lock held.
class Unkillable {
 public:
  explicit Unkillable(unsigned pid) : pid_(static_cast<pid_t>(pid)) {
    REQUIRE(::ptrace(PTRACE_SEIZE, pid_, nullptr, nullptr) == 0);
  }
  ~Unkillable() { end(); }
  Unkillable(const Unkillable&) = delete;
  Unkillable& operator=(const Unkillable&) = delete;

  /// Its signal waits for the tracer, who does nothing.
  bool was_told_to_end() const {
    std::ifstream stat("/proc/" + std::to_string(pid_) + "/stat");
    std::string pid, name, state;
    stat >> pid >> name >> state;
    return state == "t" || state == "Z";
  }
  /// By the thread that made this.
  void end() {
    if (std::exchange(ended_, true)) return;
    ::kill(pid_, SIGKILL);
    int status = 0;
    while (::waitpid(pid_, &status, __WALL) == pid_ && !WIFSIGNALED(status) && !WIFEXITED(status)) {
    }
  }

 private:
  pid_t pid_;
  bool ended_ = false;
};

}  // namespace kvmscope::virt
