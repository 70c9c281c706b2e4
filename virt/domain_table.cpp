// SPDX-License-Identifier: Apache-2.0
#include "virt/domain_table.h"

#include <utility>

#include "virt/processes.h"

namespace kvmscope::virt {
namespace {
/// A failure that lasts shorter is no problem: a domain that is just ending has no process for a moment.
constexpr std::chrono::milliseconds kGrace{1'000};
/// For so long each tick tries again; later only lists do.
constexpr std::chrono::milliseconds kRetryFor{5'000};
}  // namespace

void DomainTable::on_event(const DomainEvent& event) {
  if (!event.stopped) {
    Domain& domain = domains_[event.uuid];
    domain.name = event.name;
    domain.listed = true;
    look_soon(event.uuid, domain);
    return;
  }
  const auto at = domains_.find(event.uuid);
  if (at == domains_.end()) return;
  Domain& domain = at->second;
  domain.listed = false;
  domain.stopped = true;
  // A living process is the next run's already, told before we got to this event.
  if (is_process_alive(domain)) {
    look_soon(event.uuid, domain);
  } else {
    gone(event.uuid, domain);
    forget_if_idle(event.uuid);
  }
}

void DomainTable::on_touched(const std::string& name) {
  for (auto& [uuid, domain] : domains_)
    if (domain.listed && domain.name == name) look_soon(uuid, domain);
}

void DomainTable::on_list(const std::vector<ListedDomain>& running) {
  for (auto& [uuid, domain] : domains_) domain.listed = false;
  for (const ListedDomain& found : running) {
    Domain& domain = domains_[found.uuid];
    domain.name = found.name;
    domain.listed = true;
  }
  // Those missing are looked at, too: they may have started since the list was made.
  list_left_.emplace();
  for (auto& [uuid, domain] : domains_) {
    if (domain.taken) {
      domain.again = true;
    } else {
      list_left_->insert(uuid);
      enqueue(uuid, domain, false);
    }
  }
}

bool DomainTable::take_list_done() {
  if (!list_left_ || !list_left_->empty()) return false;
  list_left_.reset();
  return true;
}

std::vector<core::VmUuid> DomainTable::running() const {
  std::vector<core::VmUuid> uuids;
  for (const auto& [uuid, domain] : domains_)
    if (domain.listed) uuids.push_back(uuid);
  return uuids;
}

void DomainTable::enqueue(const core::VmUuid& uuid, Domain& domain, bool urgent) {
  if (domain.queued && !urgent) return;
  domain.queued = true;
  // Twice in the queues does no harm: the second time it is not queued any more.
  (urgent ? urgent_ : routine_).push_back(uuid);
}

void DomainTable::look_soon(const core::VmUuid& uuid, Domain& domain) {
  if (domain.taken) {
    domain.again = true;
  } else {
    enqueue(uuid, domain, true);
  }
}

std::optional<DomainTable::Request> DomainTable::next_look() {
  while (!urgent_.empty() || !routine_.empty()) {
    std::deque<core::VmUuid>& queue = urgent_.empty() ? routine_ : urgent_;
    const core::VmUuid uuid = queue.front();
    queue.pop_front();
    const auto at = domains_.find(uuid);
    if (at == domains_.end() || !at->second.queued) continue;
    Domain& domain = at->second;
    domain.queued = domain.again = domain.stopped = false;
    domain.taken = true;
    Request request{uuid, std::nullopt};
    if (domain.told) request.known = domain.told->process;
    return request;
  }
  return std::nullopt;
}

void DomainTable::on_look(const core::VmUuid& uuid, const Look& look, Time now) {
  Domain& domain = domains_.at(uuid);  // one that is taken is never forgotten
  domain.taken = false;
  if (list_left_) list_left_->erase(uuid);
  if (domain.again) enqueue(uuid, domain, true);
  if (!look) {
    if (!domain.stopped) failed(uuid, domain, look.error(), now);
  } else if (*look) {
    seen(uuid, domain, **look);
    // A life so short that its end was announced before we had asked who it was.
    if (domain.stopped && !is_process_alive(domain)) gone(uuid, domain);
  } else if (!domain.again) {
    not_running(uuid, domain);
  }
  forget_if_idle(uuid);
}

void DomainTable::on_look_lost(const core::VmUuid& uuid) {
  Domain& domain = domains_.at(uuid);
  domain.taken = false;
  enqueue(uuid, domain, true);
}

void DomainTable::on_look_stuck(const core::VmUuid& uuid, const std::string& reason,
                                const std::string& detail) {
  if (list_left_) list_left_->erase(uuid);
  tell_problem(uuid, domains_.at(uuid), {reason, detail});
}

void DomainTable::on_disconnect() {
  list_left_.reset();
}

void DomainTable::tick(Time now) {
  for (auto next = domains_.begin(); next != domains_.end();) {
    const core::VmUuid uuid = next->first;
    Domain& domain = next->second;
    ++next;
    if (domain.told) check_cgroups(domain);
    if (domain.failing_since && now - *domain.failing_since < kRetryFor) look_soon(uuid, domain);
    if (domain.orphan && !is_process_alive(domain)) {
      gone(uuid, domain);
      forget_if_idle(uuid);
    }
  }
}

bool DomainTable::is_process_alive(const Domain& domain) const {
  return domain.told && is_alive(paths_.proc_root, domain.told->process);
}

void DomainTable::seen(const core::VmUuid& uuid, Domain& domain, const DescribedVm& vm) {
  if (domain.told && domain.told->process != vm.facts.process) gone(uuid, domain);
  const bool news = domain.told != vm.facts || domain.problem;
  domain.name = vm.facts.name;
  domain.listed = true;
  domain.orphan = false;
  domain.failing_since.reset();
  domain.problem.reset();
  domain.cgroups = vm.cgroups;
  domain.told = vm.facts;
  if (news) listener_.on_seen(VmSeen{vm.facts});
}

void DomainTable::not_running(const core::VmUuid& uuid, Domain& domain) {
  if (is_process_alive(domain)) {
    domain.orphan = true;
    tell_problem(uuid, domain, {"libvirt does not know it any more, but its QEMU process runs", ""});
  } else {
    gone(uuid, domain);
  }
  domain.listed = false;
}

void DomainTable::gone(const core::VmUuid& uuid, Domain& domain) {
  if (domain.told) listener_.on_gone(VmGone{uuid, domain.told->process});
  domain.told.reset();
  domain.cgroups.clear();
  domain.listed = domain.orphan = false;
  domain.failing_since.reset();
  domain.problem.reset();
}

void DomainTable::failed(const core::VmUuid& uuid, Domain& domain, const LookFailure& failure, Time now) {
  if (!domain.failing_since) domain.failing_since = now;
  if (now - *domain.failing_since >= kGrace)
    tell_problem(uuid, domain, {failure.reason, failure.cause.message()});
}

void DomainTable::tell_problem(const core::VmUuid& uuid, Domain& domain, const Problem& problem) {
  if (domain.problem == problem) return;
  domain.problem = problem;
  listener_.on_problem(VmProblem{uuid, domain.name, problem.reason, problem.detail});
}

void DomainTable::check_cgroups(Domain& domain) {
  if (domain.cgroups.empty() || is_unchanged(domain.cgroups)) return;
  CgroupTree now = read_cgroup_tree(paths_.cgroup_root + domain.told->cgroup_path);
  // Empty: it is ending. And a directory without its process may be the next run's.
  if (now.empty() || !is_process_alive(domain)) return;
  domain.cgroups = std::move(now);
  domain.told->cgroup_ids = cgroup_ids(domain.cgroups);
  listener_.on_seen(VmSeen{*domain.told});
}

void DomainTable::forget_if_idle(const core::VmUuid& uuid) {
  const auto at = domains_.find(uuid);
  const Domain& domain = at->second;
  if (!domain.listed && !domain.taken && !domain.queued && !domain.told) domains_.erase(at);
}

}  // namespace kvmscope::virt
