// SPDX-License-Identifier: Apache-2.0
// QEMU processes: how they end, what they fault in, and threads that the kernel makes for them.
#include <sys/wait.h>

#include <csignal>

#include "tests/bpf/rig.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf::test {
namespace {

constexpr std::uint64_t kMs = 1'000'000;

std::uint64_t cpu_ns(const SlotMaps& maps) {
  std::uint64_t sum = 0;
  for (std::uint16_t row = 0; row < maps.shape().vcpus; ++row)
    sum += maps.counter({.kind = KV_VCPU_TIME, .dev = row, .sub = 0}).count;
  for (std::uint16_t which = 0; which < KV_THREADS; ++which)
    sum += maps.counter({.kind = KV_THREAD_TIME, .dev = 0, .sub = which}).count;
  return sum;
}

/// The status of the only process that ended.
int end_of(Rig& rig, const Arguments& arguments) {
  Child vm(arguments);
  vm.wait();
  rig.until([&] { return rig.processes.size() == 2; });
  const ProcessEvent& ended = rig.processes.back();
  REQUIRE(ended.type == ProcessEvent::Type::exited);
  REQUIRE(ended.process == rig.processes.front().process);
  REQUIRE(ended.monotonic_ns > rig.processes.front().monotonic_ns);
  return ended.wait_status;
}

TEST_CASE("how a QEMU ended: its exit code, or the signal that killed it") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  const std::string shell = rig.qemu("sh");
  SECTION("well") {
    const int status = end_of(rig, {shell, "-c", "exit 0"});
    REQUIRE((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  }
  SECTION("not well") {
    const int status = end_of(rig, {shell, "-c", "exit 3"});
    REQUIRE((WIFEXITED(status) && WEXITSTATUS(status) == 3));
  }
  SECTION("killed") {
    const int status = end_of(rig, {shell, "-c", "kill -9 $$"});
    REQUIRE((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
  }
  SECTION("crashed") {
    const int status = end_of(rig, {shell, "-c", "ulimit -c 0; kill -SEGV $$"});
    REQUIRE((WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV));
  }
  SECTION("killed while it had threads") {
    const int status = end_of(
        rig,
        {"sh", "-c", "(sleep 0.3; kill -TERM $$) & exec " + rig.qemu(KVMSCOPE_THREADS) + " worker:9000"});
    REQUIRE((WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM));
  }
}

TEST_CASE("many threads that are killed at once: one end, all of their time, and the slot is free soon") {
  Rig rig;
  Arguments arguments{rig.qemu(KVMSCOPE_THREADS)};
  for (int i = 0; i < 64; ++i) arguments.push_back("worker:60000");
  for (std::uint32_t slot = 1; slot <= 10; ++slot) {
    rig.processes.clear();
    const SlotMaps maps = rig.spare(slot);
    Child vm(arguments);
    rig.until([&] { return !rig.processes.empty(); });
    rig.until([&] { return vm.cpu_ns() > 50 * kMs; });
    const core::ProcessKey key = rig.processes.front().process;
    REQUIRE(rig.tracer().has_threads(key));
    ::kill(vm.pid(), SIGKILL);
    REQUIRE(vm.wait() == -1);
    rig.until([&] { return rig.processes.size() > 1; });
    REQUIRE_FALSE(rig.tracer().has_threads(key));
    rig.until([&] { return rig.tracer().in_flight(maps.identity()) == 0; });
    rig.spin(std::chrono::milliseconds(20));
    REQUIRE(rig.processes.size() == 2);
    REQUIRE(cpu_ns(maps) > 20 * kMs);
  }
}

TEST_CASE("a thread that dies while its VM changes hands is counted once, and holds up neither slot") {
  Rig rig;
  const SlotMaps first = rig.spare(1);
  Child vm({rig.qemu(KVMSCOPE_THREADS), "worker:60000", "worker:60000"});
  rig.until([&] { return !rig.processes.empty(); });
  const SlotMaps second = rig.spare(2);
  ::kill(vm.pid(), SIGKILL);
  static_cast<void>(rig.tracer().rebind(rig.processes.front().process));
  rig.tracer().count_threads();
  vm.wait();
  for (const SlotMaps* maps : {&first, &second})
    rig.until([&] { return rig.tracer().in_flight(maps->identity()) == 0; });
}

TEST_CASE("threads that the kernel makes for a VM are the VM's from their first ns") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  const std::uint64_t said = std::stoull(run({rig.qemu(KVMSCOPE_WORK), "kernel", "2000"}));
  REQUIRE(said > 20 * kMs);
  rig.until([&] { return cpu_ns(maps) + 2 * kMs >= said; });
  CAPTURE(said, cpu_ns(maps));
  REQUIRE(cpu_ns(maps) < said + said / 50 + 4 * kMs);
}

TEST_CASE("major page faults are counted, and no other process's") {
  Rig rig;
  const TempDir dir;
  write_file(dir / "file", std::size_t{64} * 4096);
  const SlotMaps maps = rig.spare(1);
  const auto counted = [&] { return maps.counter({.kind = KV_PAGING, .dev = 0, .sub = 0}).count; };
  run({KVMSCOPE_WORK, "fault", (dir / "file").string()});
  REQUIRE(counted() == 0);
  const std::uint64_t said = std::stoull(run({rig.qemu(KVMSCOPE_WORK), "fault", (dir / "file").string()}));
  REQUIRE(said >= 60);
  rig.until([&] { return counted() >= said; });
  REQUIRE(counted() <= said + 2);  // at its exit
}

}  // namespace
}  // namespace kvmscope::bpf::test
