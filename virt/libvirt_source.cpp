// SPDX-License-Identifier: Apache-2.0
#include "virt/libvirt_source.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <future>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "virt/call_pool.h"
#include "virt/connection.h"
#include "virt/describe.h"
#include "virt/domain_xml.h"
#include "virt/event_loop.h"
#include "virt/files.h"
#include "virt/processes.h"

namespace kvmscope::virt {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using ConnectionPtr = std::shared_ptr<Connection>;

constexpr unsigned kCallThreads = 2;
/// A domain that could not be described is tried again at each tick, that often; then at each relist only.
constexpr int kMaxFailures = 5;
/// The destructor lets go of a libvirtd that does not answer its goodbye within this time.
constexpr milliseconds kMaxGoodbye{1'000};

/// What one look at a domain gave. No value and no error: it does not run.
using Look = core::Result<std::optional<DescribedVm>>;

/// Blocking; on a call thread. `known` is the process reported last, if any.
Look look_at(const Connection& connection, const HostPaths& paths, const core::VmUuid& uuid,
             std::optional<core::ProcessKey> known) {
  const auto xml = connection.domain_xml(uuid);
  if (!xml && xml.error().code() == core::ErrorCode::not_found) return std::nullopt;
  if (!xml) return core::fail(xml.error());
  auto facts = parse_domain_xml(*xml);
  if (!facts) return core::fail(facts.error());
  if (facts->domain_id < 0) return std::nullopt;
  auto vm = describe_on_host(paths, std::move(*facts));
  if (!vm) return core::fail(vm.error());
  // A domain that restarted in between has the old run's XML and the new run's process.
  if (known != vm->facts.process) {
    const auto id = connection.domain_id(uuid);
    if (!id && id.error().code() == core::ErrorCode::unavailable) return core::fail(id.error());
    if (!id || *id != vm->facts.domain_id)
      return core::fail(core::ErrorCode::not_found, "the domain stopped or restarted while it was looked at");
  }
  return std::move(*vm);
}

}  // namespace

/// All state belongs to the control thread, which never blocks. Call threads and libvirt's event loop only
/// post to it.
struct LibvirtSource::Impl : std::enable_shared_from_this<Impl> {
  struct Domain {
    std::string name;
    bool listed = false;  ///< runs, as far as libvirt told
    bool busy = false;    ///< a call about it is out, perhaps for ever
    bool queued = false;
    bool again = false;    ///< something happened since that call began
    bool stopped = false;  ///< its end was announced since that call began
    bool orphan = false;   ///< libvirt has forgotten it, its process lives
    int failures = 0;
    std::string problem;  ///< as last reported
    std::optional<core::VmFacts> reported;
    CgroupTree cgroups;
  };
  using Domains = std::map<core::VmUuid, Domain>;

  struct Call {
    asio::steady_timer deadline;
    std::function<void()> on_deadline;
    bool late = false;
  };

  Impl(Options given, std::unique_ptr<EventLoop> loop);
  void run();
  void shut_down();

  template <typename T>
  void emit(const std::function<void(T)>& callback, T value);
  template <typename R>
  void call(std::function<R()> blocking, std::function<void(R)> done, std::function<void()> on_deadline);
  bool has_free_thread() const;

  void connect();
  void connected(core::Result<ConnectionPtr> opened, std::string description);
  void disconnected(const std::string& why);
  void reconnect_later();
  void report_connection(bool up, const std::string& detail);
  ConnectionEvents events_for(std::uint64_t generation);

  void relist();
  void listed(std::uint64_t generation, core::Result<std::vector<Connection::Domain>> running);
  void finish_relist_if_done();

  void pump();
  void enqueue(const core::VmUuid& uuid, bool urgent);
  void look(const core::VmUuid& uuid, Domain& domain);
  void looked(std::uint64_t generation, const core::VmUuid& uuid, const Look& result);
  void on_event(std::uint64_t generation, const DomainEvent& event);
  void not_running(Domains::iterator at);
  void seen(const core::VmUuid& uuid, Domain& domain, const DescribedVm& vm);
  void gone(const core::VmUuid& uuid, Domain& domain);
  void problem(const core::VmUuid& uuid, Domain& domain, const std::string& reason);
  void forget_if_idle(Domains::iterator at);

  void tick();
  void check_cgroups(Domain& domain);
  void every(asio::steady_timer& timer, milliseconds interval, void (Impl::*what)());

  Options options;
  HostPaths paths;
  std::atomic<bool> silent =
      false;  ///< the source is gone: values still on their way to the executor are dropped

  asio::io_context control{1};
  asio::executor_work_guard<asio::io_context::executor_type> guard{control.get_executor()};
  asio::steady_timer reconnect_timer{control};
  asio::steady_timer rescan_timer{control};
  asio::steady_timer tick_timer{control};
  std::mt19937 random{std::random_device{}()};

  std::map<CallPool::CallId, Call> calls;
  CallPool::CallId next_call = 1;

  ConnectionPtr connection;
  std::uint64_t generation = 0;  ///< of the connection: what an earlier one still says is ignored
  bool opening = false;
  milliseconds backoff{0};
  std::optional<ConnectionState> connection_reported;
  std::future<void> last_closed;

  Domains domains;
  std::deque<core::VmUuid> urgent;
  std::deque<core::VmUuid> routine;
  bool relist_wanted = false;
  bool listing = false;
  std::optional<std::set<core::VmUuid>> relist_left;  ///< a relist is on: these have still to be looked at

  CallPool pool{kCallThreads};
  std::unique_ptr<EventLoop> event_loop;
  std::thread thread;
};

LibvirtSource::Impl::Impl(Options given, std::unique_ptr<EventLoop> loop)
    : options(std::move(given)),
      paths{options.proc_root, options.cgroup_root, options.run_dir},
      backoff(options.reconnect_min),
      event_loop(std::move(loop)) {}

void LibvirtSource::Impl::run() {
  thread = std::thread([this] { control.run(); });
  asio::post(control, [this] {
    connect();
    every(tick_timer, options.cgroup_interval, &Impl::tick);
  });
}

void LibvirtSource::Impl::shut_down() {
  silent = true;
  asio::post(control, [this] {
    connection.reset();
    control.stop();
  });
  thread.join();
  const auto patience = std::min(options.call_deadline, kMaxGoodbye);
  if (pool.stop(patience) && last_closed.valid()) last_closed.wait_for(patience);
  event_loop.reset();
}

template <typename T>
void LibvirtSource::Impl::emit(const std::function<void(T)>& callback, T value) {
  if (!callback) return;
  asio::post(options.executor, [self = weak_from_this(), callback, value = std::move(value)]() mutable {
    const auto alive = self.lock();
    if (alive && !alive->silent) callback(std::move(value));
  });
}

template <typename R>
void LibvirtSource::Impl::call(std::function<R()> blocking, std::function<void(R)> done,
                               std::function<void()> on_deadline) {
  const CallPool::CallId id = next_call++;
  Call& entry = calls.emplace(id, Call{asio::steady_timer(control), std::move(on_deadline)}).first->second;
  entry.deadline.expires_after(options.call_deadline);
  entry.deadline.async_wait([this, id](const boost::system::error_code& error) {
    const auto at = calls.find(id);
    if (error || at == calls.end() || !pool.abandon(id)) return;  // or the result is on its way
    at->second.late = true;
    at->second.on_deadline();
    pump();
  });
  pool.submit(id, [weak = weak_from_this(), id, blocking = std::move(blocking), done = std::move(done)] {
    R result = blocking();
    const auto self = weak.lock();
    if (!self) return;
    asio::post(self->control, [weak, id, done, result = std::move(result)]() mutable {
      const auto impl = weak.lock();
      if (!impl) return;
      impl->calls.erase(id);
      done(std::move(result));
      impl->pump();
    });
  });
}

bool LibvirtSource::Impl::has_free_thread() const {
  const auto out = std::ranges::count_if(calls, [](const auto& entry) { return !entry.second.late; });
  return out < static_cast<std::ptrdiff_t>(kCallThreads);
}

void LibvirtSource::Impl::connect() {
  opening = true;
  auto promise = std::make_shared<std::promise<void>>();
  last_closed = promise->get_future();
  const Connection::Options how{
      .uri = options.uri,
      .keepalive_interval_s = options.keepalive_interval_s,
      .keepalive_count = options.keepalive_count,
      .until_closed = std::shared_ptr<void>(nullptr, [promise](void*) { promise->set_value(); })};
  struct Opened {
    core::Result<ConnectionPtr> connection;
    std::string description;
  };
  call<Opened>(
      [how, events = events_for(++generation)]() -> Opened {
        auto opened = Connection::open(how, events);
        if (!opened) return {core::fail(opened.error()), ""};
        auto description = (*opened)->describe();
        if (!description) return {core::fail(description.error()), ""};
        return {std::move(opened), std::move(*description)};
      },
      [this](Opened opened) { connected(std::move(opened.connection), std::move(opened.description)); },
      // There is no taking back: it is waited for further, and taken when it comes after all.
      [this] { report_connection(false, options.uri + ": no answer"); });
}

ConnectionEvents LibvirtSource::Impl::events_for(std::uint64_t of) {
  const auto to_control = [weak = weak_from_this()](auto what) {
    if (const auto self = weak.lock())
      asio::post(self->control, [weak, what = std::move(what)] {
        if (const auto impl = weak.lock()) what(*impl);
      });
  };
  return {[to_control, of](DomainEvent event) {
            to_control([of, event = std::move(event)](Impl& impl) { impl.on_event(of, event); });
          },
          [to_control, of](std::string why) {
            to_control([of, why = std::move(why)](Impl& impl) {
              if (of == impl.generation && impl.connection) impl.disconnected(why);
            });
          }};
}

void LibvirtSource::Impl::connected(core::Result<ConnectionPtr> opened, std::string description) {
  opening = false;
  if (!opened) {
    report_connection(false, opened.error().message());
    reconnect_later();
    return;
  }
  connection = std::move(*opened);
  report_connection(true, description);
  relist();
}

void LibvirtSource::Impl::disconnected(const std::string& why) {
  connection.reset();
  ++generation;
  listing = false;
  relist_wanted = false;
  relist_left.reset();
  urgent.clear();
  routine.clear();
  for (auto& [uuid, domain] : domains) domain.queued = domain.again = domain.stopped = false;
  rescan_timer.cancel();
  report_connection(false, why);
  reconnect_later();
}

void LibvirtSource::Impl::reconnect_later() {
  // Half of it is chance, so that the daemons of a rack do not come back as one.
  std::uniform_int_distribution<milliseconds::rep> jitter(backoff.count() / 2, backoff.count());
  reconnect_timer.expires_after(milliseconds(jitter(random)));
  backoff = std::min(backoff * 2, options.reconnect_max);
  reconnect_timer.async_wait([this](const boost::system::error_code& error) {
    if (!error && !connection && !opening) connect();
  });
}

void LibvirtSource::Impl::report_connection(bool up, const std::string& detail) {
  if (connection_reported && connection_reported->connected == up && connection_reported->detail == detail)
    return;
  connection_reported = ConnectionState{up, detail};
  emit(options.on_connection, *connection_reported);
}

void LibvirtSource::Impl::relist() {
  rescan_timer.cancel();
  relist_wanted = true;
  pump();
}

void LibvirtSource::Impl::listed(std::uint64_t of, core::Result<std::vector<Connection::Domain>> running) {
  if (of != generation || !connection) return;
  listing = false;
  if (!running) {
    disconnected(running.error().message());
    return;
  }
  relist_left.emplace();
  for (auto& [uuid, domain] : domains) domain.listed = false;
  for (const Connection::Domain& found : *running) {
    Domain& domain = domains[found.uuid];
    domain.name = found.name;
    domain.listed = true;
  }
  // Those that are not listed any more are looked at, too: they may have started since the list was made.
  for (auto at = domains.begin(); at != domains.end();) {
    const auto now = at++;
    if (now->second.busy) {
      now->second.again = true;
    } else {
      relist_left->insert(now->first);
      enqueue(now->first, false);
    }
  }
  finish_relist_if_done();
}

void LibvirtSource::Impl::finish_relist_if_done() {
  if (!relist_left || !relist_left->empty()) return;
  relist_left.reset();
  backoff = options.reconnect_min;
  std::vector<core::VmUuid> running;
  for (const auto& [uuid, domain] : domains)
    if (domain.listed) running.push_back(uuid);
  emit(options.on_listed, std::move(running));
  rescan_timer.expires_after(options.rescan_interval);
  rescan_timer.async_wait([this](const boost::system::error_code& error) {
    if (!error && connection) relist();
  });
}

void LibvirtSource::Impl::enqueue(const core::VmUuid& uuid, bool first) {
  Domain& domain = domains[uuid];
  if (domain.queued && !first)
    return;  // twice in the queues does no harm: the second look finds nothing queued
  domain.queued = true;
  (first ? urgent : routine).push_back(uuid);
}

void LibvirtSource::Impl::pump() {
  while (connection && has_free_thread()) {
    if (relist_wanted && !listing && !relist_left) {
      relist_wanted = false;
      listing = true;
      call<core::Result<std::vector<Connection::Domain>>>(
          [from = connection] { return from->running_domains(); },
          [this, of = generation](auto running) { listed(of, std::move(running)); },
          [this, of = generation] {
            if (of == generation) disconnected(options.uri + ": no answer to the list of domains");
          });
      continue;
    }
    std::deque<core::VmUuid>& queue = urgent.empty() ? routine : urgent;
    if (queue.empty()) return;
    const core::VmUuid uuid = queue.front();
    queue.pop_front();
    const auto at = domains.find(uuid);
    if (at == domains.end() || !at->second.queued) continue;
    at->second.queued = false;
    if (at->second.busy) {
      at->second.again = true;
    } else {
      look(uuid, at->second);
    }
  }
}

void LibvirtSource::Impl::look(const core::VmUuid& uuid, Domain& domain) {
  domain.busy = true;
  domain.again = domain.stopped = false;
  std::optional<core::ProcessKey> known;
  if (domain.reported) known = domain.reported->process;
  call<Look>([from = connection, where = paths, uuid, known] { return look_at(*from, where, uuid, known); },
             [this, of = generation, uuid](const Look& result) { looked(of, uuid, result); },
             [this, of = generation, uuid] {
               // It stays busy until that call returns: never two for one domain, and the others go on.
               const std::string why = fmt::format("no answer within {} ms", options.call_deadline.count());
               problem(uuid, domains[uuid], why);
               if (of == generation) disconnected("domain " + domains[uuid].name + ": " + why);
             });
}

void LibvirtSource::Impl::looked(std::uint64_t of, const core::VmUuid& uuid, const Look& result) {
  const auto at = domains.find(uuid);
  Domain& domain = at->second;  // busy ones are never forgotten
  domain.busy = false;
  if (of != generation) {
    if (connection) enqueue(uuid, true);
    return;
  }
  if (!result && result.error().code() == core::ErrorCode::unavailable) {
    disconnected(result.error().message());
    return;
  }
  if (result && *result) {
    seen(uuid, domain, **result);
    // A life so short that its end came before we had asked who it was.
    if (domain.stopped && !is_alive(paths.proc_root, (*result)->facts.process)) gone(uuid, domain);
  } else if (!result && !domain.stopped) {
    if (++domain.failures > 1) problem(uuid, domain, result.error().message());
  }
  const bool again = domain.again;
  if (again) enqueue(uuid, true);
  if (relist_left) relist_left->erase(uuid);
  if (result && !*result && !again) {
    not_running(at);
  } else {
    forget_if_idle(at);
  }
  finish_relist_if_done();
}

void LibvirtSource::Impl::on_event(std::uint64_t of, const DomainEvent& event) {
  if (of != generation) return;
  if (!event.stopped) {
    Domain& domain = domains[event.uuid];
    domain.name = event.name;
    domain.listed = true;
    if (domain.busy) {
      domain.again = true;
    } else {
      enqueue(event.uuid, true);
    }
  } else if (const auto at = domains.find(event.uuid); at != domains.end()) {
    Domain& domain = at->second;
    domain.listed = false;
    domain.stopped = true;
    // The process may be the next run's already, which we have seen before we got to this event.
    if (domain.reported && is_alive(paths.proc_root, domain.reported->process)) {
      if (domain.busy)
        domain.again = true;
      else
        enqueue(event.uuid, true);
    } else {
      gone(event.uuid, domain);
      forget_if_idle(at);
    }
  }
  pump();
}

void LibvirtSource::Impl::not_running(Domains::iterator at) {
  Domain& domain = at->second;
  domain.listed = false;
  if (domain.reported && is_alive(paths.proc_root, domain.reported->process)) {
    domain.orphan = true;
    problem(at->first, domain, "libvirt does not know it any more, but its QEMU process runs");
    return;
  }
  gone(at->first, domain);
  forget_if_idle(at);
}

void LibvirtSource::Impl::seen(const core::VmUuid& uuid, Domain& domain, const DescribedVm& vm) {
  if (domain.reported && domain.reported->process != vm.facts.process) gone(uuid, domain);
  const bool news = !domain.reported || *domain.reported != vm.facts || !domain.problem.empty();
  domain.name = vm.facts.name;
  domain.listed = true;
  domain.orphan = false;
  domain.failures = 0;
  domain.problem.clear();
  domain.cgroups = vm.cgroups;
  domain.reported = vm.facts;
  if (news) emit(options.on_seen, VmSeen{vm.facts});
}

void LibvirtSource::Impl::gone(const core::VmUuid& uuid, Domain& domain) {
  if (domain.reported) emit(options.on_gone, VmGone{uuid, domain.reported->process});
  domain.reported.reset();
  domain.cgroups.clear();
  domain.orphan = false;
  domain.listed = false;
}

void LibvirtSource::Impl::problem(const core::VmUuid& uuid, Domain& domain, const std::string& reason) {
  if (domain.problem == reason) return;
  domain.problem = reason;
  emit(options.on_problem, VmProblem{uuid, domain.name, reason});
}

void LibvirtSource::Impl::forget_if_idle(Domains::iterator at) {
  const Domain& domain = at->second;
  if (!domain.listed && !domain.busy && !domain.queued && !domain.reported) domains.erase(at);
}

void LibvirtSource::Impl::tick() {
  for (auto next = domains.begin(); next != domains.end();) {
    const auto at = next++;
    Domain& domain = at->second;
    if (domain.orphan && !is_alive(paths.proc_root, domain.reported->process)) {
      gone(at->first, domain);
      forget_if_idle(at);
      continue;
    }
    if (domain.reported) check_cgroups(domain);
    if (connection && !domain.busy && domain.failures > 0 && domain.failures < kMaxFailures)
      enqueue(at->first, true);
  }
  pump();
}

void LibvirtSource::Impl::check_cgroups(Domain& domain) {
  if (domain.cgroups.empty() || is_unchanged(domain.cgroups)) return;
  CgroupTree now = read_cgroup_tree(paths.cgroup_root + domain.reported->cgroup_path);
  // Empty: it is ending. Not its own any more: the directory was made anew for a next run.
  if (now.empty() || !is_alive(paths.proc_root, domain.reported->process)) return;
  domain.cgroups = std::move(now);
  domain.reported->cgroup_ids = cgroup_ids(domain.cgroups);
  emit(options.on_seen, VmSeen{*domain.reported});
}

void LibvirtSource::Impl::every(asio::steady_timer& timer, milliseconds interval, void (Impl::*what)()) {
  timer.expires_after(interval);
  timer.async_wait([this, &timer, interval, what](const boost::system::error_code& error) {
    if (error) return;
    (this->*what)();
    every(timer, interval, what);
  });
}

LibvirtSource::LibvirtSource(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

core::Result<std::unique_ptr<LibvirtSource>> LibvirtSource::start(Options options) {
  if (!options.executor) return core::fail(core::ErrorCode::invalid_argument, "libvirt source: no executor");
  if (options.cgroup_root.empty()) {
    const auto mounts = read_file(options.proc_root + "/self/mountinfo");
    if (mounts) options.cgroup_root = unified_mount_point(*mounts);
  }
  auto loop = EventLoop::start();
  if (!loop) return core::fail(loop.error());
  auto impl = std::make_shared<Impl>(std::move(options), std::move(*loop));
  impl->run();
  return std::unique_ptr<LibvirtSource>(new LibvirtSource(std::move(impl)));
}

LibvirtSource::~LibvirtSource() {
  impl_->shut_down();
}

void LibvirtSource::refresh() {
  asio::post(impl_->control, [weak = std::weak_ptr(impl_)] {
    if (const auto impl = weak.lock(); impl && impl->connection) impl->relist();
  });
}

}  // namespace kvmscope::virt
