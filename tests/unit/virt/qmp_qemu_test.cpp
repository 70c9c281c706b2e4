// SPDX-License-Identifier: Apache-2.0
// Against the QEMU that is installed: the other tests only say what we believe of it.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <set>
#include <thread>

#include "tests/unit/virt/qmp_fixture.h"
#include "virt/qmp_replies.h"

namespace kvmscope::virt {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;

/// Ends with this object, or with us.
class Qemu {
 public:
  Qemu(const std::string& socket, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "qemu-system-x86_64");
    for (const char* more : {"-nodefaults", "-display", "none", "-qmp"}) arguments.emplace_back(more);
    arguments.push_back("unix:" + socket + ",server=on,wait=off");
    std::vector<char*> argv;
    argv.reserve(arguments.size() + 1);
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    REQUIRE(pid_ >= 0);
    if (pid_ > 0) return;
    if (::prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && ::getppid() == parent) ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  ~Qemu() {
    if (!over()) ::kill(pid_, SIGKILL);
    if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
  }
  Qemu(const Qemu&) = delete;
  Qemu& operator=(const Qemu&) = delete;

  pid_t pid() const { return pid_; }
  bool over() {
    if (pid_ > 0 && ::waitpid(pid_, nullptr, WNOHANG) == pid_) pid_ = 0;
    return pid_ <= 0;
  }
  std::set<std::uint32_t> threads() const {
    std::set<std::uint32_t> ids;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid_) + "/task"))
      ids.insert(static_cast<std::uint32_t>(std::stoul(entry.path().filename().string())));
    return ids;
  }

 private:
  pid_t pid_ = 0;
};

struct Fixture : QmpFixture {
  void start(const std::vector<std::string>& arguments) {
    qemu = std::make_unique<Qemu>(options.socket, arguments);
    options.qemu_pid = qemu->pid();
    const auto until = std::chrono::steady_clock::now() + 60s;
    while (!connect()) {
      REQUIRE_FALSE(qemu->over());
      REQUIRE(std::chrono::steady_clock::now() < until);
      std::this_thread::sleep_for(10ms);
    }
  }
  /// What it returns. Events may be among what was said before it.
  json call(const std::string& command, const json& arguments = {}) {
    execute(command, arguments);
    while (seen.empty() || !seen.back().starts_with(command)) wait(seen.size() + 1);
    CAPTURE(message);
    REQUIRE(seen.back().starts_with(command + " = "));
    return std::exchange(value, {});
  }
  template <typename T>
  T read(core::Result<T> (*reading)(const json&), const std::string& command) {
    auto value_read = reading(call(command));
    if (!value_read) FAIL(value_read.error().message());
    return std::move(*value_read);
  }

  std::unique_ptr<Qemu> qemu;
};

TEST_CASE_METHOD(Fixture, "a QEMU without a machine") {
  start({"-machine", "none"});
  CHECK(read(read_status, "query-status") == RunStatus{true, "running"});
  CHECK(seen.front().starts_with("ready "));
  CHECK(read(read_blockstats, "query-blockstats").empty());
  CHECK(read(read_cpus_fast, "query-cpus-fast").empty());
  CHECK(read(read_iothreads, "query-iothreads").empty());

  SECTION("stop and cont, and their events") {
    seen.clear();
    call("stop");
    CHECK(told() == Seen{"event STOP", "stop = {}"});
    CHECK(read(read_status, "query-status") == RunStatus{false, "paused"});
    seen.clear();
    call("cont");
    CHECK(told() == Seen{"event RESUME", "cont = {}"});
  }
  SECTION("many commands at once") {
    seen.clear();
    for (int i = 0; i < 64; ++i) execute(i % 2 == 0 ? "query-status" : "no-such");
    wait(64);
    CHECK(std::ranges::count(seen, "no-such: unsupported") == 32);
  }
  SECTION("the longest reply that it has") {
    CHECK(call("query-qmp-schema").size() > 500);
  }
  SECTION("further clients") {
    QmpFixture second;
    second.options.socket = options.socket;
    second.options.qemu_pid = qemu->pid();
    second.options.handshake_deadline = 50ms;
    REQUIRE(second.connect());
    second.wait(1);
    CHECK(second.told() == Seen{"closed: deadline_exceeded"});
    // The backlog is 1, which is room for two. Nobody has taken the second out of it, who has gone.
    QmpFixture third;
    QmpFixture fourth;
    third.options.socket = fourth.options.socket = options.socket;
    third.options.qemu_pid = fourth.options.qemu_pid = qemu->pid();
    REQUIRE(third.connect());
    const auto refused = fourth.connect();
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code() == core::ErrorCode::unavailable);
    // When the first goes, the next one's turn comes.
    destroy();
    settle();
    third.wait(1);
    CHECK(third.told() == Seen{seen.front()});
  }
  SECTION("its end") {
    seen.clear();
    execute("quit");
    wait(3);
    std::sort(seen.begin(), seen.begin() + 2);  // either may be first
    CHECK(told() == Seen{"event SHUTDOWN", "quit = {}", "closed: unavailable"});
  }
}

TEST_CASE_METHOD(Fixture, "a QEMU with a disk, two vCPUs and an I/O thread") {
  start({"-machine", "q35,accel=tcg", "-m", "32", "-S", "-smp", "2", "-object", "iothread,id=io1",
         "-blockdev", "null-co,node-name=n0,size=1048576", "-device",
         "virtio-blk-pci,drive=n0,id=disk0,iothread=io1"});
  CHECK(read(read_status, "query-status") == RunStatus{false, "prelaunch"});

  const auto threads = qemu->threads();
  const auto vcpus = read(read_cpus_fast, "query-cpus-fast");
  REQUIRE(vcpus.size() == 2);
  CHECK(vcpus[0].index == 0);
  CHECK(vcpus[1].index == 1);
  const auto io = read(read_iothreads, "query-iothreads");
  REQUIRE(io.size() == 1);
  CHECK(io[0].id == "io1");
  for (const std::uint32_t id : {vcpus[0].thread_id, vcpus[1].thread_id, io[0].thread_id})
    CHECK(threads.contains(id));

  const auto devices = read(read_blockstats, "query-blockstats");
  REQUIRE(devices.size() == 1);
  CHECK(devices[0].qdev == "/machine/peripheral/disk0/virtio-backend");
  CHECK(devices[0].node_name == "n0");
  CHECK(devices[0].device.empty());
  CHECK(devices[0].read == BlockOperations{0, 0, 0, 0, 0, {}});
  CHECK(devices[0].write == devices[0].read);
  CHECK(devices[0].flush == BlockOperations{0, {}, 0, 0, {}, {}});
  CHECK(devices[0].unmap == devices[0].read);

  call("block-latency-histogram-set", {{"id", devices[0].qdev}, {"boundaries", {1'000, 10'000}}});
  const auto with = read(read_blockstats, "query-blockstats");
  REQUIRE(with.size() == 1);
  const LatencyHistogram empty{{1'000, 10'000}, {0, 0, 0}};
  CHECK(with[0].read.latency == empty);
  CHECK(with[0].write.latency == empty);
  CHECK(with[0].flush.latency == empty);
  CHECK_FALSE(with[0].unmap.latency);

  // Requests as if the device had made them: this machine runs no guest.
  for (const char* request : {"aio_read -q 0 4096", "aio_write -q 0 8192", "aio_flush"})
    call("human-monitor-command",
         {{"command-line", "qemu-io -d " + devices[0].qdev + " \"" + request + "\""}});
  const auto used = read(read_blockstats, "query-blockstats").at(0);
  CHECK(used.read.operations == 1);
  CHECK(used.read.bytes == 4'096);
  CHECK(used.read.total_time_ns > 0);
  CHECK(used.write.operations == 1);
  CHECK(used.write.bytes == 8'192);
  const auto& bins = used.read.latency->bins;
  CHECK(std::accumulate(bins.begin(), bins.end(), std::uint64_t{0}) == 1);

  execute("block-latency-histogram-set", {{"id", "none"}, {"boundaries", {1'000}}});
  wait(seen.size() + 1);
  CHECK(seen.back() == "block-latency-histogram-set: not_found");
}

}  // namespace
}  // namespace kvmscope::virt
