// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/thread_pool.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "hostd/core/ids.h"
#include "tenancy/registry.h"
#include "virt/libvirt_source.h"

namespace kvmscope::hostd {

/// Looks at processes in /proc on a thread of its own: a command line can be unreadable for as long as its
/// process holds its memory map. Requests are answered in order, on the executor's thread.
class Discovery {
 public:
  Discovery(boost::asio::any_io_executor executor, std::string proc_root,
            std::vector<std::string> qemu_names);
  ~Discovery();

  /// Describes a process; nothing if it is gone already.
  void describe(core::ProcessKey process, std::function<void(std::optional<tenancy::ProcessHint>)> done);
  /// Calls back after everything asked before: keeps the order of a process's start and end.
  void after(std::function<void()> done);
  /// All QEMU processes of this host that are neither capability probes nor in containers, and which of
  /// `known` are gone.
  struct Found {
    std::vector<virt::QemuProcess> running;
    std::vector<core::ProcessKey> gone;
  };
  void scan(std::vector<core::ProcessKey> known, std::function<void(Found)> done);

 private:
  boost::asio::any_io_executor executor_;
  std::string proc_root_;
  std::vector<std::string> qemu_names_;
  boost::asio::thread_pool thread_{1};
};

tenancy::ProcessHint hint_of(const virt::QemuProcess& process);

}  // namespace kvmscope::hostd
