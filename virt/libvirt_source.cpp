// SPDX-License-Identifier: Apache-2.0
#include "virt/libvirt_source.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <future>
#include <map>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "virt/call_pool.h"
#include "virt/connection.h"
#include "virt/describe.h"
#include "virt/domain_table.h"
#include "virt/domain_xml.h"
#include "virt/event_loop.h"
#include "virt/files.h"
#include "virt/status_files.h"

namespace kvmscope::virt {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using ConnectionPtr = std::shared_ptr<Connection>;

/// So many looks and lists at a time, not counting those that have become slow.
constexpr unsigned kLooks = 2;
/// Connecting and probing must not wait for a thread.
constexpr unsigned kCallThreads = kLooks + 2;
/// libvirtd reads no further call of a client that waits for 5 answers (max_client_requests in
/// libvirtd.conf). One is kept for the probe.
constexpr unsigned kMaxInLibvirt = 4;
/// With so many calls stuck, one look at a time is all that is left: a new connection has all 5 again. The
/// old one's calls end when libvirt lets them, and no domain is asked for again before.
constexpr unsigned kMaxStuck = 3;
/// After this part of the deadline a call is slow: it gives its place to another, and libvirtd is probed.
constexpr int kSlowPart = 4;
/// The destructor lets go of a libvirtd that does not answer its goodbye within this time.
constexpr milliseconds kMaxGoodbye{1'000};

std::unexpected<LookFailure> failure(std::string reason, core::Error cause) {
  return std::unexpected(LookFailure{std::move(reason), std::move(cause)});
}

/// Of what describe_on_host() says.
std::string host_reason(core::ErrorCode code) {
  if (code == core::ErrorCode::not_found) return "no QEMU process found";
  if (code == core::ErrorCode::invalid_argument) return "several QEMU processes with its UUID";
  return "the QEMU process cannot be examined";
}

/// Whether a call waits for libvirt now; else it waits for the host.
using InLibvirt = std::shared_ptr<std::atomic<bool>>;

/// Blocking; on a call thread.
Look look_at(const Connection& connection, const HostPaths& paths, const DomainTable::Request& request,
             std::atomic<bool>& in_libvirt) {
  const auto xml = connection.domain_xml(request.uuid);
  if (!xml && xml.error().code() == core::ErrorCode::not_found) return std::nullopt;
  if (!xml) return failure("libvirt gives no XML", xml.error());
  auto domain = parse_domain_xml(*xml);
  if (!domain) return failure("the XML cannot be read", domain.error());
  if (domain->facts.domain_id < 0) return std::nullopt;
  in_libvirt = false;
  auto vm = describe_on_host(paths, std::move(*domain));
  if (!vm) return failure(host_reason(vm.error().code()), vm.error());
  // A domain that restarted in between has the old run's XML and the new run's process.
  if (request.known != vm->facts.process) {
    in_libvirt = true;
    const auto id = connection.domain_id(request.uuid);
    if (!id || *id != vm->facts.domain_id)
      return failure("it stopped or restarted while it was looked at",
                     id ? core::Error(core::ErrorCode::not_found, "another running id") : id.error());
  }
  return std::move(*vm);
}

}  // namespace

/// All state belongs to the control thread, which never blocks. Call threads and libvirt's event loop only
/// post to it.
struct LibvirtSource::Impl : std::enable_shared_from_this<Impl> {
  struct Call {
    asio::steady_timer timer;
    std::function<void()> on_deadline;
    std::uint64_t generation = 0;  ///< of the connection that is asked
    InLibvirt in_libvirt;          ///< null: connecting or probing
    enum class Age { fresh, slow, late } age = Age::fresh;
  };

  Impl(Options given, std::unique_ptr<EventLoop> loop);
  void run();
  void shut_down();

  template <typename T>
  void emit(const std::function<void(T)>& callback, T value);
  template <typename R>
  void call(InLibvirt in_libvirt, std::function<R()> blocking, std::function<void(R)> done,
            std::function<void()> on_deadline);
  void expect_soon(CallPool::CallId id, Call& call);
  void on_slow(CallPool::CallId id);
  void on_late(CallPool::CallId id);
  bool waits_for_libvirt(const Call& call) const;
  bool has_room() const;
  bool is_connection_used_up() const;

  void connect();
  void connected(core::Result<ConnectionPtr> opened, std::string of_what);
  void disconnected(const std::string& why);
  void reconnect_later();
  void report_connection(bool up, const std::string& detail);
  ConnectionEvents events_for(std::uint64_t generation);

  void probe();
  void probe_again();

  void relist();
  void list();
  void list_is_late();
  void listed(std::uint64_t generation, const core::Result<std::vector<ListedDomain>>& running);
  void after_relist();

  void read_block_stats();

  void pump();
  void look(const DomainTable::Request& request);
  void looked(std::uint64_t generation, const core::VmUuid& uuid, const Look& result);
  void touched(const StatusFiles::Names& names);
  void tick();
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
  asio::steady_timer stats_timer{control};
  std::mt19937 random{std::random_device{}()};

  std::map<CallPool::CallId, Call> calls;
  CallPool::CallId next_call = 1;

  ConnectionPtr connection;
  std::uint64_t generation = 0;  ///< of the connection: what an earlier one still says is ignored
  std::string description;
  bool opening = false;
  unsigned probes = 0;  ///< not answered yet
  std::chrono::steady_clock::time_point last_probe, last_answer;
  milliseconds backoff{0};
  std::optional<ConnectionState> connection_reported;
  std::future<void> last_closed;

  DomainTable domains;
  StatusFiles status_files{control.get_executor(), options.run_dir,
                           [this](const StatusFiles::Names& names) { touched(names); }};
  bool relist_wanted = false;
  bool relisting = false;
  bool reading_stats = false;

  CallPool pool{kCallThreads};
  std::unique_ptr<EventLoop> event_loop;
  std::thread thread;
};

LibvirtSource::Impl::Impl(Options given, std::unique_ptr<EventLoop> loop)
    : options(std::move(given)),
      paths{options.proc_root, options.cgroup_root, options.run_dir},
      backoff(options.reconnect_min),
      domains(paths, {[this](VmSeen event) { emit(options.on_seen, std::move(event)); },
                      [this](VmGone event) { emit(options.on_gone, std::move(event)); },
                      [this](VmProblem event) { emit(options.on_problem, std::move(event)); }}),
      event_loop(std::move(loop)) {}

void LibvirtSource::Impl::run() {
  thread = std::thread([this] { control.run(); });
  asio::post(control, [this] {
    connect();
    every(tick_timer, options.cgroup_interval, &Impl::tick);
    if (options.on_block_stats) every(stats_timer, options.stats_interval, &Impl::read_block_stats);
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
void LibvirtSource::Impl::call(InLibvirt in_libvirt, std::function<R()> blocking, std::function<void(R)> done,
                               std::function<void()> on_deadline) {
  const CallPool::CallId id = next_call++;
  Call entry{.timer = asio::steady_timer(control),
             .on_deadline = std::move(on_deadline),
             .generation = generation,
             .in_libvirt = std::move(in_libvirt)};
  expect_soon(id, calls.emplace(id, std::move(entry)).first->second);
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

void LibvirtSource::Impl::expect_soon(CallPool::CallId id, Call& call) {
  call.timer.expires_after(options.call_deadline / kSlowPart);
  call.timer.async_wait([this, id](const boost::system::error_code& error) {
    if (!error) on_slow(id);
  });
}

void LibvirtSource::Impl::on_slow(CallPool::CallId id) {
  const auto at = calls.find(id);
  if (at == calls.end()) return;
  // The result is on its way; or it has not begun, on a machine this busy, and may still become slow.
  if (!pool.abandon(id)) return expect_soon(id, at->second);
  Call& slow = at->second;
  slow.age = Call::Age::slow;
  slow.timer.expires_after(options.call_deadline - options.call_deadline / kSlowPart);
  slow.timer.async_wait([this, id](const boost::system::error_code& error) {
    if (!error) on_late(id);
  });
  if (waits_for_libvirt(slow) && probes == 0) probe();
  pump();
}

void LibvirtSource::Impl::on_late(CallPool::CallId id) {
  const auto at = calls.find(id);
  if (at == calls.end()) return;
  at->second.age = Call::Age::late;
  const auto tell = at->second.on_deadline;
  tell();
  if (connection && is_connection_used_up())
    disconnected(fmt::format("{}: {} calls do not return", options.uri, kMaxStuck));
  pump();
}

/// On the connection that is in use.
bool LibvirtSource::Impl::waits_for_libvirt(const Call& call) const {
  return connection && call.generation == generation && call.in_libvirt && *call.in_libvirt;
}

bool LibvirtSource::Impl::has_room() const {
  const auto fresh = std::ranges::count_if(calls, [](const auto& entry) {
    return entry.second.in_libvirt && entry.second.age == Call::Age::fresh;
  });
  const auto in_libvirt =
      std::ranges::count_if(calls, [this](const auto& entry) { return waits_for_libvirt(entry.second); });
  return fresh < static_cast<std::ptrdiff_t>(kLooks) &&
         in_libvirt < static_cast<std::ptrdiff_t>(kMaxInLibvirt);
}

bool LibvirtSource::Impl::is_connection_used_up() const {
  const auto stuck = std::ranges::count_if(calls, [this](const auto& entry) {
    return entry.second.age == Call::Age::late && waits_for_libvirt(entry.second);
  });
  return stuck >= static_cast<std::ptrdiff_t>(kMaxStuck);
}

void LibvirtSource::Impl::connect() {
  opening = true;
  auto promise = std::make_shared<std::promise<void>>();
  last_closed = promise->get_future();
  const Connection::Options how{
      .uri = options.uri,
      .until_closed = std::shared_ptr<void>(nullptr, [promise](void*) { promise->set_value(); })};
  struct Opened {
    core::Result<ConnectionPtr> connection;
    std::string description;
  };
  ++generation;
  call<Opened>(
      nullptr,
      [how, events = events_for(generation)]() -> Opened {
        auto opened = Connection::open(how, events);
        if (!opened) return {core::fail(opened.error()), ""};
        auto text = (*opened)->describe();
        if (!text) return {core::fail(text.error()), ""};
        return {std::move(opened), std::move(*text)};
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
            to_control([of, event = std::move(event)](Impl& impl) {
              if (of != impl.generation) return;
              impl.domains.on_event(event);
              impl.pump();
            });
          },
          [to_control, of](std::string why) {
            to_control([of, why = std::move(why)](Impl& impl) {
              if (of == impl.generation && impl.connection) impl.disconnected(why);
            });
          }};
}

void LibvirtSource::Impl::connected(core::Result<ConnectionPtr> opened, std::string of_what) {
  opening = false;
  if (!opened) {
    report_connection(false, opened.error().message());
    reconnect_later();
    return;
  }
  connection = std::move(*opened);
  description = std::move(of_what);
  status_files.watch();
  report_connection(true, description);
  relist();
}

void LibvirtSource::Impl::disconnected(const std::string& why) {
  connection.reset();
  ++generation;
  relist_wanted = relisting = reading_stats = false;
  probes = 0;
  domains.on_disconnect();
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

/// A call that waits for one domain says nothing about libvirtd. Nor does a list: libvirt takes the lock of
/// each domain for it (virDomainObjListFilter), and holds one while a killed QEMU waits to be reaped.
void LibvirtSource::Impl::probe() {
  last_probe = std::chrono::steady_clock::now();
  ++probes;
  call<core::Result<void>>(
      nullptr, [from = connection] { return from->ping(); },
      [this, of = generation](const core::Result<void>& answer) {
        if (of != generation) return;
        --probes;
        last_answer = std::chrono::steady_clock::now();
        if (!answer) disconnected(answer.error().message());
      },
      [this, of = generation, sent = last_probe] {
        if (of == generation && last_answer < sent) disconnected(options.uri + ": no answer");
      });
}

/// As long as a call does not return, and the probe itself. For a libvirtd may stop later on; and libvirt's
/// client may leave a call unsent until the next (virNetClientIO: g_main_loop_quit() has no effect on a
/// thread that is on its way into the loop), as long as the thread that waits for everybody's answers does
/// so.
void LibvirtSource::Impl::probe_again() {
  const bool waits = probes > 0 || std::ranges::any_of(calls, [this](const auto& entry) {
                       return entry.second.age != Call::Age::fresh && waits_for_libvirt(entry.second);
                     });
  const auto since = std::chrono::steady_clock::now() - last_probe;
  if (connection && waits && since >= options.call_deadline / kSlowPart) probe();
}

void LibvirtSource::Impl::relist() {
  rescan_timer.cancel();
  relist_wanted = true;
  pump();
}

void LibvirtSource::Impl::list() {
  relist_wanted = false;
  relisting = true;
  call<core::Result<std::vector<ListedDomain>>>(
      std::make_shared<std::atomic<bool>>(true), [from = connection] { return from->running_domains(); },
      [this, of = generation](const auto& running) { listed(of, running); },
      [this, of = generation, sent = std::chrono::steady_clock::now()] {
        if (of == generation && last_answer > sent) list_is_late();
      });
}

/// Though libvirtd has answered a probe since.
void LibvirtSource::Impl::list_is_late() {
  report_connection(true, description + "; waits for a locked domain with its list");
}

void LibvirtSource::Impl::listed(std::uint64_t of, const core::Result<std::vector<ListedDomain>>& running) {
  if (of != generation) return;
  if (!running) {
    disconnected(running.error().message());
    return;
  }
  report_connection(true, description);
  domains.on_list(*running);
}

void LibvirtSource::Impl::after_relist() {
  relisting = false;
  backoff = options.reconnect_min;
  emit(options.on_listed, domains.running());
  rescan_timer.expires_after(options.rescan_interval);
  rescan_timer.async_wait([this](const boost::system::error_code& error) {
    if (!error && connection) relist();
  });
}

/// Never two at a time, and never before what tells which domains there are. One that hangs on a domain's
/// lock is waited for: what it would say comes with the next.
void LibvirtSource::Impl::read_block_stats() {
  if (!connection || reading_stats || !has_room()) return;
  reading_stats = true;
  call<core::Result<std::vector<BlockReading>>>(
      std::make_shared<std::atomic<bool>>(true), [from = connection] { return from->block_stats(); },
      [this, of = generation](core::Result<std::vector<BlockReading>> readings) {
        if (of != generation) return;
        reading_stats = false;
        if (readings) emit(options.on_block_stats, std::move(*readings));
      },
      [] {});
}

/// Sends out as many calls as there is room for. Runs after whatever may have changed that.
void LibvirtSource::Impl::pump() {
  if (domains.take_list_done()) after_relist();
  while (connection && has_room()) {
    if (relist_wanted && !relisting) {
      list();
    } else if (const auto request = domains.next_look()) {
      look(*request);
    } else {
      return;
    }
  }
}

void LibvirtSource::Impl::look(const DomainTable::Request& request) {
  const core::VmUuid& uuid = request.uuid;
  const auto in_libvirt = std::make_shared<std::atomic<bool>>(true);
  call<Look>(
      in_libvirt,
      [from = connection, where = paths, request, in_libvirt] {
        return look_at(*from, where, request, *in_libvirt);
      },
      [this, of = generation, uuid](const Look& result) { looked(of, uuid, result); },
      // It stays taken until that call returns: never two for one domain, and the others go on.
      [this, uuid, in_libvirt] {
        domains.on_look_stuck(uuid,
                              *in_libvirt ? "libvirt does not answer for it"
                                          : "the host does not answer for its process or its disks",
                              fmt::format("no answer within {} ms", options.call_deadline.count()));
      });
}

void LibvirtSource::Impl::looked(std::uint64_t of, const core::VmUuid& uuid, const Look& result) {
  const bool lost = !result && result.error().cause.code() == core::ErrorCode::unavailable;
  if (of != generation || lost) {
    domains.on_look_lost(uuid);
    if (of == generation) disconnected(result.error().cause.message());
  } else {
    domains.on_look(uuid, result, std::chrono::steady_clock::now());
  }
}

void LibvirtSource::Impl::touched(const StatusFiles::Names& names) {
  for (const std::string& name : names) domains.on_touched(name);
  pump();
}

void LibvirtSource::Impl::tick() {
  domains.tick(std::chrono::steady_clock::now());
  probe_again();
  pump();
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
