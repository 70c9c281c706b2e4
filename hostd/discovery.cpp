// SPDX-License-Identifier: Apache-2.0
#include "hostd/discovery.h"

#include <algorithm>
#include <utility>

namespace kvmscope::hostd {
namespace {

/// No process: the list of all of them.
constexpr core::ProcessKey kList{};

tenancy::ProcessHint hint_of(const virt::QemuProcess& process) {
  return {.uuid = process.uuid,
          .guest_name = process.guest_name,
          .capability_probe = process.capability_probe,
          .in_container = process.in_container};
}

}  // namespace

Discovery::Discovery(boost::asio::any_io_executor executor, std::string proc_root,
                     std::vector<std::string> qemu_names, std::chrono::milliseconds deadline)
    : proc_root_(std::move(proc_root)),
      qemu_names_(std::move(qemu_names)),
      deadline_(deadline),
      mailbox_(std::make_shared<exporters::Mailbox>(executor)),
      timer_(executor) {}

Discovery::~Discovery() {
  mailbox_->close();
}

void Discovery::describe(core::ProcessKey process,
                         std::function<void(std::optional<tenancy::ProcessHint>)> done) {
  add(look_at(process, [done = std::move(done)](const core::Result<virt::QemuProcess>& looked) {
    done(looked ? std::optional(hint_of(*looked)) : std::nullopt);
  }));
}

void Discovery::after(std::function<void()> done) {
  add({.subject = {}, .look = {}, .give_up = std::move(done)});
}

void Discovery::scan(std::vector<core::ProcessKey> known, std::function<void(Found)> done) {
  auto scan = std::make_shared<Scan>(Scan{.found = {}, .done = std::move(done)});
  add(job<Listing>(
      kList,
      [root = proc_root_, names = qemu_names_, known = std::move(known)] {
        Listing listing;
        for (const core::ProcessKey& process : virt::find_qemu(root, names)) {
          if (std::ranges::find(known, process) == known.end()) listing.running.push_back(process);
        }
        for (const core::ProcessKey& process : known) {
          const auto now = virt::process_key(root, process.tgid);
          if (!now || *now != process) listing.gone.push_back(process);
        }
        return listing;
      },
      [this, scan = std::move(scan)](const Listing& listing) { listed(scan, listing); }, Listing{}));
}

/// Each process is looked at by itself: one that cannot be does not hide the others. All come before what was
/// asked for later.
void Discovery::listed(const std::shared_ptr<Scan>& scan, const Listing& listing) {
  scan->found.gone = listing.gone;
  std::vector<Job> jobs;
  for (const core::ProcessKey& process : listing.running) {
    jobs.push_back(look_at(process, [scan, process](const core::Result<virt::QemuProcess>& looked) {
      seen(*scan, process, looked);
    }));
  }
  jobs.push_back({.subject = {}, .look = {}, .give_up = [scan] { scan->done(std::move(scan->found)); }});
  waiting_.insert(waiting_.begin(), std::make_move_iterator(jobs.begin()),
                  std::make_move_iterator(jobs.end()));
}

void Discovery::seen(Scan& scan, core::ProcessKey process, const core::Result<virt::QemuProcess>& looked) {
  if (looked) {
    if (!looked->capability_probe && !looked->in_container)
      scan.found.running.push_back({process, looked->comm, hint_of(*looked)});
  } else if (looked.error().code() == core::ErrorCode::deadline_exceeded) {
    scan.found.running.push_back({process, {}, std::nullopt});
  }
}

Discovery::Job Discovery::look_at(core::ProcessKey process,
                                  std::function<void(core::Result<virt::QemuProcess>)> done) const {
  using Looked = core::Result<virt::QemuProcess>;
  return job<Looked>(
      process, [root = proc_root_, process] { return virt::describe_qemu(root, process); }, std::move(done),
      core::fail(core::ErrorCode::deadline_exceeded, "its command line cannot be read"));
}

template <typename Value>
Discovery::Job Discovery::job(core::ProcessKey subject, std::function<Value()> look,
                              std::function<void(Value)> done, Value unknown) {
  return {
      .subject = subject,
      .look = [look = std::move(look), done]() -> Answer { return [done, value = look()] { done(value); }; },
      .give_up = [done, unknown = std::move(unknown)] { done(unknown); }};
}

void Discovery::add(Job job) {
  waiting_.push_back(std::move(job));
  // Never at once: who asks does not expect an answer before the call returns.
  mailbox_->post([this] { next(); });
}

void Discovery::next() {
  while (!running_ && !waiting_.empty()) {
    Job job = std::move(waiting_.front());
    waiting_.pop_front();
    if (!job.look || is_stuck(job.subject)) {
      job.give_up();
      continue;
    }
    const virt::CallPool::CallId id = ++last_id_;
    pool_.submit(id, [this, id, look = job.look, mailbox = mailbox_] {
      mailbox->post([this, id, answer = look()] { answered(id, answer); });
    });
    running_ = std::move(job);
    watch(id);
  }
}

void Discovery::watch(virt::CallPool::CallId id) {
  // Tens of thousands of processes are listed in seconds.
  timer_.expires_after(running_->subject == kList ? 10 * deadline_ : deadline_);
  timer_.async_wait([this, id](const boost::system::error_code& error) {
    if (error || !running_ || id != last_id_) return;  // cancelled, destroyed, answered meanwhile
    if (!pool_.abandon(id)) return watch(id);          // its answer is on its way, or it has not begun
    const Job job = std::move(*running_);
    running_.reset();
    given_up_.emplace(id, job.subject);
    job.give_up();
    next();
  });
}

void Discovery::answered(virt::CallPool::CallId id, const Answer& answer) {
  if (given_up_.erase(id) != 0) return;
  timer_.cancel();
  running_.reset();
  answer();
  next();
}

bool Discovery::is_stuck(core::ProcessKey subject) const {
  return std::ranges::any_of(given_up_, [&](const auto& entry) { return entry.second == subject; });
}

}  // namespace kvmscope::hostd
