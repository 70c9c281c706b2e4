// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "exporters/mailbox.h"
#include "hostd/core/ids.h"
#include "hostd/core/result.h"
#include "tenancy/registry.h"
#include "virt/call_pool.h"
#include "virt/libvirt_source.h"

namespace kvmscope::hostd {

/// Looks at processes in /proc on a thread of its own. Requests are answered in order, on the executor's
/// thread.
///
/// A command line can be unreadable for as long as its process holds its memory map, which may be for ever: a
/// look that takes longer than `deadline` is given up, its thread left to itself, and the process counts as
/// one of which nothing is known. It is not looked at again before that look has come back.
class Discovery {
 public:
  Discovery(boost::asio::any_io_executor executor, std::string proc_root, std::vector<std::string> qemu_names,
            std::chrono::milliseconds deadline = std::chrono::seconds(1));
  /// Waits for nothing.
  ~Discovery();

  /// Describes a process; nothing if it is gone already, or cannot be looked at.
  void describe(core::ProcessKey process, std::function<void(std::optional<tenancy::ProcessHint>)> done);
  /// Calls back after everything asked before: keeps the order of a process's start and end.
  void after(std::function<void()> done);
  struct Running {
    core::ProcessKey process;
    std::string comm;                          ///< empty if it cannot be looked at
    std::optional<tenancy::ProcessHint> hint;  ///< likewise
  };
  /// The QEMU processes of this host beside `known` that are, as far as can be seen, neither capability
  /// probes nor in containers, and which of `known` are gone.
  struct Found {
    std::vector<Running> running;
    std::vector<core::ProcessKey> gone;
  };
  void scan(std::vector<core::ProcessKey> known, std::function<void(Found)> done);

 private:
  /// What a look came to, to be told on the executor's thread.
  using Answer = std::function<void()>;
  struct Job {
    core::ProcessKey subject;
    std::function<Answer()> look;  ///< on the thread; empty: there is nothing to look at
    Answer give_up;
  };
  struct Listing {
    std::vector<core::ProcessKey> running;
    std::vector<core::ProcessKey> gone;
  };
  struct Scan {
    Found found;
    std::function<void(Found)> done;
  };

  template <typename Value>
  static Job job(core::ProcessKey subject, std::function<Value()> look, std::function<void(Value)> done,
                 Value unknown);
  Job look_at(core::ProcessKey process, std::function<void(core::Result<virt::QemuProcess>)> done) const;
  void listed(const std::shared_ptr<Scan>& scan, const Listing& listing);
  static void seen(Scan& scan, core::ProcessKey process, const core::Result<virt::QemuProcess>& looked);

  void add(Job job);
  void next();
  void watch(virt::CallPool::CallId id);
  void answered(virt::CallPool::CallId id, const Answer& answer);
  bool is_stuck(core::ProcessKey subject) const;

  std::string proc_root_;
  std::vector<std::string> qemu_names_;
  std::chrono::milliseconds deadline_;
  std::shared_ptr<exporters::Mailbox> mailbox_;
  boost::asio::steady_timer timer_;
  std::deque<Job> waiting_;
  std::optional<Job> running_;
  virt::CallPool::CallId last_id_ = 0;  ///< of what runs, or ran last
  std::map<virt::CallPool::CallId, core::ProcessKey> given_up_;
  virt::CallPool pool_{1};
};

}  // namespace kvmscope::hostd
