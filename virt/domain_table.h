// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <deque>
#include <expected>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "virt/describe.h"
#include "virt/domain_event.h"
#include "virt/libvirt_source.h"

namespace kvmscope::virt {

/// Why a look gave nothing.
struct LookFailure {
  std::string reason;  ///< as VmProblem's
  core::Error cause;
};

/// What one look at a domain gave. No value and no error: it does not run.
using Look = std::expected<std::optional<DescribedVm>, LookFailure>;

/// What has been told about each domain, and whom to look at next. Events, lists and looks come in any order
/// and overlap; here it is decided what they mean together. One thread; knows neither threads nor libvirt.
class DomainTable {
 public:
  using Time = std::chrono::steady_clock::time_point;
  struct Listener {
    std::function<void(VmSeen)> on_seen;
    std::function<void(VmGone)> on_gone;
    std::function<void(VmProblem)> on_problem;
  };
  struct Request {
    core::VmUuid uuid;
    std::optional<core::ProcessKey> known;  ///< the process reported last
  };

  DomainTable(HostPaths paths, Listener listener)
      : paths_(std::move(paths)), listener_(std::move(listener)) {}

  void on_event(const DomainEvent& event);
  /// Something about the running domain of that name may have changed. Of no meaning for one not yet known.
  void on_touched(const std::string& name);
  /// A complete list of those that run. All known domains are looked at again.
  void on_list(const std::vector<ListedDomain>& running);
  /// True once per list: as soon as all have been looked at.
  bool take_list_done();
  std::vector<core::VmUuid> running() const;

  /// The next domain to look at, events before lists; never one that is being looked at. The caller owes an
  /// answer: on_look(), or on_look_lost() if the connection that was asked is another by now. on_look_stuck()
  /// tells that there is no answer yet; the domain stays taken until there is, and no list waits for it.
  std::optional<Request> next_look();
  void on_look(const core::VmUuid& uuid, const Look& look, Time now);
  void on_look_lost(const core::VmUuid& uuid);
  void on_look_stuck(const core::VmUuid& uuid, const std::string& reason, const std::string& detail);

  /// What was told stays true until a new connection says otherwise; what was to be looked at still is.
  void on_disconnect();
  /// Looks for new cgroups, and again at domains that could not be described.
  void tick(Time now);

 private:
  struct Problem {
    std::string reason, detail;
    bool operator==(const Problem&) const = default;
  };
  struct Domain {
    std::string name;
    bool listed = false;  ///< runs, as far as libvirt told
    bool queued = false;
    bool taken = false;    ///< being looked at
    bool again = false;    ///< something happened since that look began
    bool stopped = false;  ///< its end was announced since that look began
    bool orphan = false;   ///< libvirt does not know it any more, its process lives
    std::optional<Time> failing_since;
    std::optional<Problem> problem;  ///< as last told
    std::optional<core::VmFacts> told;
    CgroupTree cgroups;
  };
  using Domains = std::map<core::VmUuid, Domain>;

  void enqueue(const core::VmUuid& uuid, Domain& domain, bool urgent);
  void look_soon(const core::VmUuid& uuid, Domain& domain);
  bool is_process_alive(const Domain& domain) const;
  void seen(const core::VmUuid& uuid, Domain& domain, const DescribedVm& vm);
  void not_running(const core::VmUuid& uuid, Domain& domain);
  void gone(const core::VmUuid& uuid, Domain& domain);
  void failed(const core::VmUuid& uuid, Domain& domain, const LookFailure& failure, Time now);
  void tell_problem(const core::VmUuid& uuid, Domain& domain, const Problem& problem);
  void check_cgroups(Domain& domain);
  void forget_if_idle(const core::VmUuid& uuid);

  HostPaths paths_;
  Listener listener_;
  Domains domains_;
  std::deque<core::VmUuid> urgent_;
  std::deque<core::VmUuid> routine_;
  std::optional<std::set<core::VmUuid>> list_left_;  ///< of a list: those still to be looked at
};

}  // namespace kvmscope::virt
