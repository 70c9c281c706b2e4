// SPDX-License-Identifier: Apache-2.0
#include "hostd/app.h"

#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <csignal>
#include <ctime>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bpf/tracer.h"
#include "hostd/check_local.h"
#include "hostd/control.h"
#include "hostd/core/clock.h"
#include "hostd/coverage.h"
#include "hostd/discovery.h"
#include "hostd/export_cycle.h"
#include "hostd/logging.h"
#include "hostd/qemu_monitors.h"
#include "hostd/readiness.h"
#include "hostd/self_metrics.h"
#include "hostd/slot_keeper.h"
#include "hostd/stream_set.h"
#include "hostd/systemd_notify.h"
#include "hostd/ticker.h"
#include "hostd/top_tracker.h"
#include "hostd/vm_views.h"
#include "tenancy/registry.h"
#include "virt/cgroups.h"
#include "virt/files.h"
#include "virt/libvirt_source.h"

namespace kvmscope::hostd {
namespace {

using std::chrono::milliseconds;

constexpr const char* kBootId = "/proc/sys/kernel/random/boot_id";
constexpr milliseconds kTick{250};
constexpr milliseconds kRescan{10'000};
constexpr milliseconds kFlushDeadline{5'000};

std::string read_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string cgroup_root(const Config& config) {
  if (!config.libvirt.cgroup_root.empty()) return config.libvirt.cgroup_root;
  const auto mounts = virt::read_file("/proc/self/mountinfo");
  return mounts ? virt::unified_mount_point(*mounts) : "";
}

tenancy::RegistryConfig registry_config(const Config& config) {
  tenancy::RegistryConfig out;
  out.boot_id = read_line(kBootId);
  out.host_id = config.host.id;
  out.max_slots = config.bpf.max_slots;
  out.max_tenants = config.bpf.max_tenants;
  out.spare_slots = config.bpf.spare_slots;
  out.unattributed_after = config.tenancy.unattributed_after;
  out.linger = config.tenancy.linger;
  out.sources = config.tenancy.sources;
  out.rules = config.tenancy.rules;
  out.default_quota = config.tenancy.quota;
  out.tenant_quotas = config.tenant_quotas();
  return out;
}

std::uint64_t process_cpu_ns() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
}

std::uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  std::uint64_t size = 0;
  std::uint64_t resident = 0;
  file >> size >> resident;
  return resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
}

/// Twice within what systemd allows; a minute where it does not watch (the call does nothing then).
std::chrono::steady_clock::duration watchdog_interval() {
  const auto timeout = systemd::watchdog_timeout();
  return timeout ? *timeout / 2 : std::chrono::steady_clock::duration(std::chrono::minutes(1));
}

/// Where the tracer's callbacks go: it is opened before the daemon around it exists.
struct Inbox {
  std::function<void(const bpf::ProcessEvent&)> on_process;
  std::function<void(core::SlotIdentity, const bpf::IoErrorEvent&)> on_io_error;
};

bpf::Tracer::Options tracer_options(const Config& config, boost::asio::io_context& io,
                                    const std::shared_ptr<Inbox>& inbox) {
  bpf::Tracer::Options options;
  options.executor = io.get_executor();
  options.max_slots = config.bpf.max_slots;
  options.max_tenants = config.bpf.max_tenants;
  options.identity_hook = config.bpf.identity_hook;
  options.qemu_names = config.bpf.qemu_names;
  options.on_process = [inbox](const bpf::ProcessEvent& event) { inbox->on_process(event); };
  options.on_io_error = [inbox](core::SlotIdentity identity, std::uint32_t, const bpf::IoErrorEvent& event) {
    inbox->on_io_error(identity, event);
  };
  return options;
}

}  // namespace

/// Members in the order of dependence: destroyed in reverse.
struct App::Impl {
  Impl(Config loaded, std::shared_ptr<boost::asio::io_context> loop, std::unique_ptr<bpf::Tracer> opened,
       std::shared_ptr<Inbox> tracer_inbox);

  core::Result<void> open_control();
  core::Result<void> open_libvirt();

  void look_at_host();
  void on_process(const bpf::ProcessEvent& event);
  void on_tick();
  void tell_ready();
  void rescan();
  void duty_cycle();
  void look_for_kvm();
  void open_monitors();
  void update_monitors();

  void export_interval();
  SelfReading read_self();
  void log_health();
  void stop(int signal);

  Config config;
  std::shared_ptr<boost::asio::io_context> io;  ///< shared with look_at_host()'s thread
  std::shared_ptr<Inbox> inbox;
  core::SystemClock clock;
  std::unique_ptr<bpf::Tracer> tracer;
  tenancy::Registry registry;
  StreamSet streams;
  SlotKeeper keeper;
  TopTracker top;
  Coverage coverage;
  ExportCycle cycle;
  Discovery discovery;
  std::optional<QemuMonitors> monitors;
  virt::ConnectionState libvirt_state;
  std::vector<CheckLine> host_checks;
  std::unique_ptr<virt::LibvirtSource> libvirt;
  std::unique_ptr<ControlServer> control;
  boost::asio::signal_set signals;
  Ticker watchdog;
  Ticker tick;
  Ticker scan;
  Ticker interval;
  Ticker stats_duty;
  boost::asio::steady_timer stats_off;
  bool rescan_due = true;  ///< done at the next tick that finds a spare slot
  bool scanned = false;
  bool no_kvm = false;  ///< for good: the kernel refused our programs for it
  bool ready = false;
  std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();
  bool no_run_stats = false;
  bool stopping = false;
};

namespace {

void report(const std::string& what, const core::Error& error) {
  log_event(LogLevel::warn, what, {{"error", error.message()}});
}

/// Superseded states are history; the newest one and last values are what a bill misses.
void log_undelivered(const StreamSet::Undelivered& stream) {
  const bool missed = stream.what.newest || stream.what.finals > 0;
  log_event(missed ? LogLevel::error : LogLevel::warn, "stopped with undelivered data",
            {{"tenant", stream.tenant == kOperator ? std::string("(operator)") : stream.tenant.value},
             {"newest_state", stream.what.newest},
             {"ended_vms", stream.what.finals},
             {"batches", stream.what.batches},
             {"points", stream.what.points},
             {"records", stream.what.records},
             {"error", stream.last_error}});
}

}  // namespace

App::Impl::Impl(Config loaded, std::shared_ptr<boost::asio::io_context> loop,
                std::unique_ptr<bpf::Tracer> opened, std::shared_ptr<Inbox> tracer_inbox)
    : config(std::move(loaded)),
      io(std::move(loop)),
      inbox(std::move(tracer_inbox)),
      tracer(std::move(opened)),
      registry(registry_config(config)),
      streams(io->get_executor(), config, clock, report),
      keeper(*tracer, registry, clock, report, cgroup_root(config)),
      cycle(config, read_line(kBootId), registry, keeper, streams, top, clock),
      discovery(io->get_executor(), "/proc", config.bpf.qemu_names),
      signals(*io, SIGTERM, SIGINT, SIGHUP),
      watchdog(io->get_executor(), watchdog_interval(), [] { systemd::notify_watchdog(); }),
      tick(io->get_executor(), kTick, [this] { on_tick(); }),
      scan(io->get_executor(), kRescan,
           [this] {
             rescan_due = true;
             look_for_kvm();
           }),
      interval(io->get_executor(), config.interval, [this] { export_interval(); }),
      stats_duty(io->get_executor(), config.bpf.run_stats.every, [this] { duty_cycle(); }),
      stats_off(*io) {
  inbox->on_process = [this](const bpf::ProcessEvent& event) { on_process(event); };
  inbox->on_io_error = [this](core::SlotIdentity identity, const bpf::IoErrorEvent& event) {
    cycle.on_io_error(identity, event);
  };
}

/// Of the VMs that run, have a name and are traced.
void App::Impl::update_monitors() {
  std::vector<QemuMonitors::Vm> running;
  for (const tenancy::Epoch* epoch : registry.epochs()) {
    if (epoch->facts && epoch->end_unix_ns == 0 && epoch->state != tenancy::EpochState::over_quota &&
        registry.by_process(epoch->process) == epoch)
      running.push_back({epoch->process, epoch->facts->uuid});
  }
  monitors->update(running);
}

void App::Impl::open_monitors() {
  if (config.qmp.socket.empty()) return;
  monitors.emplace(QemuMonitors::Options{
      .executor = io->get_executor(),
      .socket = config.qmp.socket,
      .on_event = [this](core::ProcessKey process,
                         const virt::QmpEvent& event) { cycle.on_qemu_event(process, event); },
      .on_state =
          [](const QemuMonitors::Vm& vm, const core::Result<void>& state) {
            if (state)
              log_event(LogLevel::info, "QEMU tells its events",
                        {{"vm", vm.uuid.value}, {"pid", vm.process.tgid}});
            else
              log_event(
                  LogLevel::warn, "QEMU does not tell its events",
                  {{"vm", vm.uuid.value}, {"pid", vm.process.tgid}, {"error", state.error().message()}});
          }});
}

void App::Impl::on_process(const bpf::ProcessEvent& event) {
  using Type = bpf::ProcessEvent::Type;
  switch (event.type) {
    case Type::claimed:
      discovery.describe(event.process, [this, event](const std::optional<tenancy::ProcessHint>& hint) {
        keeper.on_claimed(event.process, event.identity, event.comm, hint);
        if (event.monotonic_ns != 0) cycle.on_process_start(event);
      });
      return;
    case Type::exited:
      discovery.after([this, event] {
        keeper.on_process_exit(event.process);
        cycle.on_process_end(event);
      });
      return;
    case Type::no_spare_slot:
      log_event(LogLevel::warn, "no spare slot for a process", {{"pid", event.process.tgid}});
      rescan_due = true;
      return;
  }
}

void App::Impl::on_tick() {
  keeper.tick();
  // The first look is due even if there is no slot to give: without it the daemon would never be ready.
  const bool overdue = !scanned && std::chrono::steady_clock::now() - started >= kPoolPatience;
  if (rescan_due && (overdue || tracer->spares() > 0)) rescan();
  if (!ready) tell_ready();
  if (monitors) update_monitors();
}

void App::Impl::tell_ready() {
  const std::uint32_t spares = tracer->spares();
  const auto now = readiness(scanned, spares, config.bpf.spare_slots, registry.stats(),
                             std::chrono::steady_clock::now() - started);
  if (!now) return;
  ready = true;
  if (!now->warning.empty()) {
    log_event(LogLevel::warn, now->warning,
              {{"spares", spares}, {"wanted", config.bpf.spare_slots}, {"remedy", now->remedy}});
  }
  log_event(LogLevel::info, "ready", {{"host", config.host.id}, {"control", config.control.socket}});
  systemd::notify_ready("tracing");
}

void App::Impl::rescan() {
  rescan_due = false;
  // What the kernel gave a slot while its record was lost in a full ring, alive or not.
  for (const auto& [process, identity] : tracer->processes()) {
    if (registry.by_slot(identity) == nullptr) {
      on_process({.type = bpf::ProcessEvent::Type::claimed, .process = process, .identity = identity});
    }
  }
  std::vector<core::ProcessKey> known;
  for (const tenancy::Epoch* epoch : registry.epochs()) {
    if (epoch->end_unix_ns == 0) known.push_back(epoch->process);
  }
  discovery.scan(std::move(known), [this](const Discovery::Found& found) {
    for (const core::ProcessKey& process : found.gone) keeper.on_process_exit(process);
    for (const Discovery::Running& one : found.running) {
      if (registry.by_process(one.process) == nullptr) {
        rescan_due |= !keeper.claim(one.process, one.comm, one.hint);
      }
    }
    scanned = true;
  });
}

/// Its modules may come later than we do.
void App::Impl::look_for_kvm() {
  if (no_kvm) return;
  const auto found = tracer->look_for_kvm();
  no_kvm = !found;
  if (!found) report("vCPU exits are not traced", found.error());
  if (found && *found) log_event(LogLevel::info, "KVM is here: vCPU exits are traced", {});
}

void App::Impl::duty_cycle() {
  if (config.bpf.run_stats.length.count() == 0 || no_run_stats) return;
  if (const auto on = tracer->enable_run_stats(true); !on) {
    no_run_stats = true;  // for good: it takes CAP_SYS_ADMIN, which nobody gives a running process
    return report("no run-time statistics of programs", on.error());
  }
  stats_off.expires_after(config.bpf.run_stats.length);
  stats_off.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    if (const auto off = tracer->enable_run_stats(false); !off) report("run-time statistics", off.error());
  });
}

void App::Impl::log_health() {
  for (const StreamSet::Health& change : streams.changes_of_health()) {
    const std::string tenant = change.tenant == kOperator ? "(operator)" : change.tenant.value;
    if (change.healthy) {
      log_event(LogLevel::info, "stream works again", {{"tenant", tenant}});
    } else {
      log_event(LogLevel::warn, "stream fails", {{"tenant", tenant}, {"error", change.error}});
    }
  }
}

SelfReading App::Impl::read_self() {
  SelfReading self;
  self.programs = tracer->programs();
  self.kernel = tracer->self_stats();
  self.rings.push_back({"", tracer->ring_drops(0)});
  std::map<core::TenantId, std::uint32_t> live;
  for (const auto& [index, tenant] : registry.tenants()) {
    self.rings.push_back({tenant.value, tracer->ring_drops(index)});
    live.emplace(tenant, index);
  }
  log_health();
  streams.retire_except(live);
  self.registry = registry.stats();
  for (const auto& [tenant, entry] : streams.entries()) {
    self.streams.push_back({tenant == kOperator ? std::string() : tenant.value, entry.stats()});
  }
  const Coverage::Summary summary = coverage.summary(registry.epochs());
  self.domains_running = summary.running;
  self.domains_traced = summary.traced;
  for (const auto& [reason, domains] : summary.untraced) self.untraced.push_back({reason, domains});
  self.libvirt_connected = libvirt_state.connected;
  if (monitors) self.qmp_connected = monitors->connected();
  self.cpu_ns = process_cpu_ns();
  self.resident_bytes = resident_bytes();
  return self;
}

void App::Impl::export_interval() {
  cycle.run([this] { return read_self(); });
}

core::Result<void> App::Impl::open_libvirt() {
  virt::LibvirtSource::Options options;
  options.executor = io->get_executor();
  options.uri = config.libvirt.uri;
  options.cgroup_root = config.libvirt.cgroup_root;
  options.rescan_interval = config.libvirt.rescan_interval;
  options.call_deadline = config.libvirt.call_deadline;
  options.on_seen = [this](const virt::VmSeen& seen) {
    coverage.seen(seen.facts.uuid);
    keeper.on_vm(seen.facts);
  };
  // A process's end may still be on its way through the ring and /proc: both orders are right to the
  // registry.
  options.on_gone = [this](const virt::VmGone& gone) {
    coverage.gone(gone.uuid);
    keeper.on_vm_gone(gone.uuid, gone.process);
  };
  options.on_problem = [this](const virt::VmProblem& problem) {
    coverage.problem(problem.uuid, problem.name, problem.reason);
    log_event(LogLevel::warn, "domain cannot be described",
              {{"vm", problem.name}, {"reason", problem.reason}, {"detail", problem.detail}});
  };
  options.stats_interval = config.interval;
  options.on_block_stats = [this](const std::vector<virt::BlockReading>& readings) {
    keeper.on_block_stats(readings);
  };
  options.on_listed = [this](const std::vector<core::VmUuid>& uuids) { coverage.listed(uuids); };
  options.on_connection = [this](const virt::ConnectionState& state) {
    libvirt_state = state;
    log_event(state.connected ? LogLevel::info : LogLevel::warn,
              state.connected ? "libvirt connected" : "libvirt is away", {{"detail", state.detail}});
  };
  auto source = virt::LibvirtSource::start(std::move(options));
  if (!source) return core::fail(source.error());
  libvirt = std::move(*source);
  return {};
}

core::Result<void> App::Impl::open_control() {
  ControlServer::Options options;
  options.socket = config.control.socket;
  options.allow_users = config.control.allow_users;
  options.allow_groups = config.control.allow_groups;
  using nlohmann::json;
  auto server = ControlServer::listen(
      io->get_executor(), std::move(options),
      {{"check", [this](const json&) { return to_json(check_lines(host_checks, libvirt_state, *tracer)); }},
       {"vms", [this](const json&) { return to_json(vm_views(registry, keeper, coverage)); }},
       {"tenants", [this](const json&) { return to_json(tenant_views(registry, streams, *tracer)); }},
       {"top", [this](const json&) { return to_json(top.view()); }}});
  if (!server) return core::fail(server.error());
  control = std::move(*server);
  for (const std::string& warning : control->warnings()) log_event(LogLevel::warn, warning);
  return {};
}

/// On a thread of its own that nobody waits for: it asks libvirt, which may hang.
void App::Impl::look_at_host() {
  std::thread([loop = io, uri = config.libvirt.uri, this] {
    boost::asio::post(*loop, [this, lines = check_host(uri)] { host_checks = lines; });
  }).detach();
}

void App::Impl::stop(int signal) {
  if (stopping) return;
  stopping = true;
  log_event(LogLevel::info, "stopping", {{"signal", signal}});
  systemd::notify_stopping();
  libvirt.reset();
  monitors.reset();
  keeper.close_naming();
  export_interval();
  streams.flush(kFlushDeadline, [this](const std::vector<StreamSet::Undelivered>& undelivered) {
    for (const StreamSet::Undelivered& stream : undelivered) log_undelivered(stream);
    io->stop();
  });
}

core::Result<std::unique_ptr<App>> App::start(Config config) {
  auto io = std::make_shared<boost::asio::io_context>(1);
  auto inbox = std::make_shared<Inbox>();
  auto tracer = bpf::Tracer::open(tracer_options(config, *io, inbox));
  if (!tracer) return core::fail(tracer.error());

  auto impl = std::make_unique<Impl>(std::move(config), std::move(io), std::move(*tracer), std::move(inbox));
  impl->look_at_host();
  impl->open_monitors();
  if (auto opened = impl->open_control(); !opened) return core::fail(opened.error());
  if (auto opened = impl->open_libvirt(); !opened) return core::fail(opened.error());
  return std::unique_ptr<App>(new App(std::move(impl)));
}

App::App(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
App::~App() = default;

int App::run() {
  Impl& app = *impl_;
  app.signals.async_wait([&app](const boost::system::error_code& error, int signal) {
    if (!error) app.stop(signal);
  });
  app.keeper.start();
  app.tick.start();
  app.scan.start();
  app.interval.start();
  app.stats_duty.start();
  app.watchdog.start();
  app.duty_cycle();
  app.look_for_kvm();
  app.io->run();
  return 0;
}

}  // namespace kvmscope::hostd
