// SPDX-License-Identifier: Apache-2.0
#include "tests/bpf/rig.h"

#include <bpf/btf.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <optional>
#include <sstream>
#include <thread>

#include "bpf/process_files.h"
#include "hostd/core/unique_fd.h"
#include "tests/support/catch.h"

extern char** environ;

namespace kvmscope::bpf::test {
namespace fs = std::filesystem;

namespace {

pid_t spawn(const Arguments& arguments, int out_fd) {
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, out_fd, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out_fd, STDERR_FILENO);
  pid_t pid = 0;
  const int error = ::posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  INFO("run " << arguments.front());
  REQUIRE(error == 0);
  return pid;
}

int reap(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::pair<int, std::string> run_all(const Arguments& arguments) {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const pid_t pid = spawn(arguments, ends[1]);
  ::close(ends[1]);
  std::string out;
  char buffer[4096];
  for (ssize_t got = 0; (got = ::read(ends[0], buffer, sizeof(buffer))) > 0;) {
    out.append(buffer, static_cast<std::size_t>(got));
  }
  ::close(ends[0]);
  return {reap(pid), out};
}

}  // namespace

TempDir::TempDir() {
  std::string name = "/var/tmp/kvmscope-bpf-XXXXXX";
  REQUIRE(::mkdtemp(name.data()) != nullptr);
  path_ = name;
}

TempDir::~TempDir() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

Child::Child(const Arguments& arguments) {
  const core::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  pid_ = spawn(arguments, null.get());
}

Child::~Child() {
  if (pid_ == 0) return;
  ::kill(pid_, SIGKILL);
  reap(pid_);
}

int Child::wait() {
  return reap(std::exchange(pid_, 0));
}

bool Child::running() {
  siginfo_t info{};
  return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == 0;
}

core::ProcessKey Child::key() const {
  const auto tgid = static_cast<std::uint32_t>(pid_);
  return {.tgid = tgid, .start_ticks = process_start_ticks(tgid).value_or(0)};
}

std::uint64_t Child::cpu_ns() const {
  clockid_t clock{};
  timespec used{};
  REQUIRE(::clock_getcpuclockid(pid_, &clock) == 0);
  REQUIRE(::clock_gettime(clock, &used) == 0);
  return static_cast<std::uint64_t>(used.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(used.tv_nsec);
}

std::string run(const Arguments& arguments) {
  const auto [status, out] = run_all(arguments);
  std::string line;
  for (const std::string& argument : arguments) line += argument + " ";
  INFO(line << "\n" << out);
  REQUIRE(status == 0);
  return out;
}

int run_status(const Arguments& arguments) {
  return run_all(arguments).first;
}

void write_file(const fs::path& path, std::size_t bytes) {
  const core::UniqueFd file(::open(path.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  REQUIRE(file);
  std::vector<char> block(1U << 20U);
  for (std::size_t i = 0; i < block.size(); ++i) block[i] = static_cast<char>(i * 131 >> 3U);
  for (std::size_t done = 0; done < bytes; done += block.size()) {
    const std::size_t size = std::min(block.size(), bytes - done);
    REQUIRE(::write(file.get(), block.data(), size) == static_cast<ssize_t>(size));
  }
  REQUIRE(::fsync(file.get()) == 0);
}

LoopDevice::LoopDevice(const fs::path& file) {
  path_ = run({"losetup", "--find", "--show", "--direct-io=on", file.string()});
  while (path_.ends_with('\n')) path_.pop_back();
}

LoopDevice::~LoopDevice() {
  run_status({"losetup", "-d", path_});
}

DiskKey LoopDevice::key() const {
  struct stat info{};
  REQUIRE(::stat(path_.c_str(), &info) == 0);
  return disk_key(major(info.st_rdev), minor(info.st_rdev), 0);
}

Mount::Mount(const std::string& device, fs::path where) : where_(std::move(where)) {
  run({"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", device});
  fs::create_directory(where_);
  REQUIRE(::mount(device.c_str(), where_.c_str(), "ext4", MS_NOATIME, nullptr) == 0);
}

Mount::~Mount() {
  ::umount2(where_.c_str(), MNT_DETACH);
}

NbdDisk::NbdDisk(const fs::path& where, const Arguments& nbdkit) : where_(where) {
  fs::create_directory(where_);
  Arguments arguments{"nbdfuse", where_.string() + "/disk", "--command", "nbdkit", "-s"};
  arguments.insert(arguments.end(), nbdkit.begin(), nbdkit.end());
  // nbdfuse wants the file's name below a folder that exists.
  server_ = std::make_unique<Child>(arguments);
  for (int i = 0; i < 100 && (!fs::exists(disk()) || fs::file_size(disk()) == 0); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  REQUIRE(fs::exists(disk()));
}

NbdDisk::~NbdDisk() {
  run_status({"fusermount3", "-u", "-z", where_.string()});
  server_->wait();
}

DiskKey file_key(const fs::path& path) {
  struct stat info{};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return disk_key(major(info.st_dev), minor(info.st_dev), info.st_ino);
}

Totals totals(const SlotMaps& maps, std::uint16_t dev) {
  Totals sum;
  for (std::uint16_t op = 0; op < KV_OPS; ++op) {
    sum.operations[op] = maps.counter({.kind = KV_DISK_STORAGE, .dev = dev, .sub = op});
  }
  for (std::uint16_t sub = 0; sub < std::size_t{KV_OPS} * KV_ERRORS; ++sub) {
    sum.errors += maps.counter({.kind = KV_DISK_ERRORS, .dev = dev, .sub = sub}).count;
  }
  return sum;
}

Totals totals_beside(const SlotMaps& maps, std::uint16_t dev) {
  Totals sum;
  for (std::uint16_t other = 0; other < maps.shape().disks; ++other) {
    if (other == dev) continue;
    const Totals one = totals(maps, other);
    for (std::size_t op = 0; op < KV_OPS; ++op) sum.operations[op] += one.operations[op];
    sum.errors += one.errors;
  }
  return sum;
}

core::HistogramValue duration(const SlotMaps& maps, std::uint16_t kind, std::uint16_t dev, std::uint16_t op) {
  core::HistogramValue value;
  maps.histogram({.kind = kind, .dev = dev, .sub = op}, value);
  return value;
}

std::vector<IdentityHook> identity_hooks() {
  const std::unique_ptr<btf, decltype(&btf__free)> types(btf__load_vmlinux_btf(), &btf__free);
  REQUIRE(types != nullptr);
  std::vector<IdentityHook> hooks{IdentityHook::getrq};
  // Since 6.5.
  if (btf__find_by_name_kind(types.get(), "btf_trace_block_io_start", BTF_KIND_TYPEDEF) > 0) {
    hooks.insert(hooks.begin(), IdentityHook::io_start);
  }
  return hooks;
}

/// Of this process alone: another run on this machine has its own.
std::string Rig::qemu_prefix() {
  return "kvt" + std::to_string(::getpid()) + "-";
}

Rig::Rig(IdentityHook hook) {
  Tracer::Options options{
      .executor = loop_.get_executor(),
      .max_slots = 64,
      .max_tenants = 8,
      .identity_hook = hook,
      .qemu_names = {qemu_prefix() + "*"},
      .on_process = [this](const ProcessEvent& event) { processes.push_back(event); },
      .on_io_error = [this](core::SlotIdentity identity, std::uint32_t tenant,
                            const IoErrorEvent& event) { io_errors.push_back({identity, tenant, event}); }};
  auto tracer = Tracer::open(std::move(options));
  if (!tracer) FAIL(tracer.error().message());
  tracer_ = std::move(*tracer);
}

Rig::~Rig() = default;

std::string Rig::qemu(const std::string& program) {
  std::string source = run({"sh", "-c", "command -v " + program});
  source.pop_back();
  const fs::path copy = programs_ / (qemu_prefix() + fs::path(program).filename().string());
  fs::copy_file(source, copy, fs::copy_options::skip_existing);
  return copy.string();
}

template <typename T>
core::Result<T> Rig::wait_for(const std::function<void(std::function<void(core::Result<T>)>)>& start) {
  std::optional<core::Result<T>> result;
  start([&result](core::Result<T> value) { result.emplace(std::move(value)); });
  until([&result] { return result.has_value(); });
  return std::move(*result);
}

SlotMaps Rig::install(std::uint32_t slot, SlotShape shape) {
  const core::SlotIdentity identity{.slot = {slot}, .generation = {++generation_}};
  auto maps = wait_for<SlotMaps>([&](std::function<void(core::Result<SlotMaps>)> done) {
    tracer_->install(identity, core::Incarnation{++incarnation_}, shape, std::move(done));
  });
  if (!maps) FAIL(maps.error().message());
  return std::move(*maps);
}

SlotMaps Rig::grow(const SlotMaps& old, SlotShape shape) {
  auto maps = wait_for<SlotMaps>([&](std::function<void(core::Result<SlotMaps>)> done) {
    tracer_->grow(old.identity(), core::Incarnation{++incarnation_}, shape, std::move(done));
  });
  if (!maps) FAIL(maps.error().message());
  return std::move(*maps);
}

core::Result<void> Rig::retire(core::SlotIdentity identity) {
  return wait_for<void>(
      [&](std::function<void(core::Result<void>)> done) { tracer_->retire(identity, std::move(done)); });
}

SlotMaps Rig::spare(std::uint32_t slot, SlotShape shape) {
  SlotMaps maps = install(slot, shape);
  REQUIRE(tracer_->offer_spare(maps.identity()).has_value());
  return maps;
}

int slowness() {
  const char* times = std::getenv("KVMSCOPE_SLOWNESS");
  return times ? std::atoi(times) : 1;
}

void Rig::until(const std::function<bool()>& condition, std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit * slowness();
  const auto holds = [&] {
    if (tracer_) tracer_->settle();
    return condition();
  };
  while (!holds()) {
    REQUIRE(std::chrono::steady_clock::now() < end);
    spin(std::chrono::milliseconds(2));
  }
}

void Rig::spin(std::chrono::milliseconds time) {
  loop_.restart();
  loop_.run_for(time);
}

std::uint64_t Rig::stat(std::string_view name) const {
  for (const SelfStat& entry : tracer_->self_stats()) {
    if (entry.name == name) return entry.value;
  }
  FAIL("no such statistic: " << name);
  return 0;
}

}  // namespace kvmscope::bpf::test
