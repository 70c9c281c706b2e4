// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "hostd/core/ids.h"
#include "hostd/core/result.h"
#include "virt/qmp_client.h"

namespace kvmscope::hostd {

/// A connection to every running VM's QEMU that has a monitor socket for us, made again when it ends. Loop's
/// thread only.
class QemuMonitors {
 public:
  struct Vm {
    core::ProcessKey process;
    core::VmUuid uuid;
  };
  struct Options {
    boost::asio::any_io_executor executor;
    std::string socket;  ///< path with `${vm.uuid}`
    std::function<void(core::ProcessKey, const virt::QmpEvent&)> on_event;
    /// Said once as long as nothing changes: it is connected (no error), or why it is not. Who breaks off
    /// again and again is tried no more often than who is not there.
    std::function<void(const Vm&, const core::Result<void>&)> on_state;
    std::chrono::milliseconds retry_min{1'000};
    std::chrono::milliseconds retry_max{60'000};
  };

  explicit QemuMonitors(Options options) : options_(std::move(options)) {}

  /// The VMs that run now: drops the others' connections, tries those whose time has come.
  void update(const std::vector<Vm>& running);
  std::size_t connected() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Monitor {
    Vm vm;
    bool runs = true;
    std::unique_ptr<virt::QmpClient> client;
    bool ready = false;
    Clock::time_point next_try;
    Clock::time_point ready_at;
    std::chrono::milliseconds backoff{0};
    std::string said;
  };

  void connect(Monitor& monitor);
  void failed(Monitor& monitor, const core::Error& error);
  void say(Monitor& monitor, const core::Result<void>& state) const;

  Options options_;
  std::map<core::ProcessKey, Monitor> monitors_;
};

}  // namespace kvmscope::hostd
