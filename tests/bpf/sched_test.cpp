// SPDX-License-Identifier: Apache-2.0
// CPU time and waits of a VM's threads, against what the threads themselves measured.
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "tests/bpf/rig.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf::test {
namespace {

constexpr std::uint64_t kMs = 1'000'000;

/// What a thread says of itself.
struct Said {
  std::uint64_t ran_ns = 0;
  std::uint64_t lived_ns = 0;
};

std::map<std::string, Said> parse(const std::string& printed) {
  std::map<std::string, Said> all;
  std::istringstream lines(printed);
  for (std::string name, ran, lived;
       std::getline(lines, name, ':') && std::getline(lines, ran, ':') && std::getline(lines, lived);) {
    all[name] = {std::stoull(ran), std::stoull(lived)};
  }
  REQUIRE(all.contains("process"));
  return all;
}

core::CounterValue vcpu(const SlotMaps& maps, std::uint16_t number) {
  return maps.counter({.kind = KV_VCPU_TIME, .dev = number, .sub = 0});
}
core::CounterValue thread(const SlotMaps& maps, kv_thread which) {
  return maps.counter({.kind = KV_THREAD_TIME, .dev = 0, .sub = static_cast<std::uint16_t>(which)});
}
core::CounterValue all_of(const SlotMaps& maps) {
  core::CounterValue sum;
  for (std::uint16_t row = 0; row < maps.shape().vcpus; ++row) sum += vcpu(maps, row);
  for (int which = 0; which < KV_THREADS; ++which) sum += thread(maps, static_cast<kv_thread>(which));
  return sum;
}

bool close(std::uint64_t measured, std::uint64_t truth, std::uint64_t slack_ns = 2 * kMs) {
  CAPTURE(measured, truth);
  const std::uint64_t difference = measured > truth ? measured - truth : truth - measured;
  return difference <= truth / 100 + slowness() * slack_ns;
}

bool has_thread(pid_t pid, const std::string& name) {
  for (const auto& task : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    std::string comm;
    std::getline(std::ifstream(task.path() / "comm"), comm);
    if (comm == name) return true;
  }
  return false;
}

TEST_CASE("a VM's CPU time is complete by thread, also of threads that lived between two readings") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  const auto said =
      parse(run({rig.qemu(KVMSCOPE_THREADS), "CPU 0/KVM:120", "CPU 3/KVM:60", "CPU 17/TCG:30",
                 "IO iothread1:40", "IO mon_iothread:30", "vhost-4711:20", "worker:50", "CPU x/KVM:10"}));
  rig.until([&] { return all_of(maps).count > 360 * kMs; });
  REQUIRE(close(vcpu(maps, 0).count, said.at("CPU 0/KVM").ran_ns));
  REQUIRE(close(vcpu(maps, 3).count, said.at("CPU 3/KVM").ran_ns));
  REQUIRE(close(vcpu(maps, 4).count, said.at("CPU 17/TCG").ran_ns));  // beyond the rows: "other"
  REQUIRE(vcpu(maps, 1) == core::CounterValue{});
  REQUIRE(close(thread(maps, KV_THREAD_IOTHREAD).count, said.at("IO iothread1").ran_ns));
  REQUIRE(close(thread(maps, KV_THREAD_VHOST).count, said.at("vhost-4711").ran_ns));
  REQUIRE(thread(maps, KV_THREAD_OTHER) == core::CounterValue{});
  REQUIRE(close(all_of(maps).count, said.at("process").ran_ns));

  const core::CounterValue before = all_of(maps);
  rig.tracer().count_threads();
  run({"true"});
  rig.tracer().count_threads();
  REQUIRE(all_of(maps) == before);
  REQUIRE(rig.stat("late_time") == 0);
}

TEST_CASE("a vCPU that shares its CPU: on it, waiting for it, and nothing else") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  const std::string cpu = ":400:" + std::to_string(std::thread::hardware_concurrency() - 1);  // the quietest
  const auto said = parse(run({rig.qemu(KVMSCOPE_THREADS), "CPU 0/KVM" + cpu, "CPU 1/KVM" + cpu}));
  rig.until([&] { return all_of(maps).count > 800 * kMs; });
  for (const std::uint16_t number : {std::uint16_t{0}, std::uint16_t{1}}) {
    const Said& truth = said.at("CPU " + std::to_string(number) + "/KVM");
    const core::CounterValue time = vcpu(maps, number);
    CAPTURE(number, time.count, time.sum, truth.lived_ns);
    REQUIRE(close(time.count + time.sum, truth.lived_ns, 4 * kMs));
    REQUIRE(time.sum > 300 * kMs);

    core::HistogramValue waits;
    maps.histogram({.kind = KV_VCPU_DELAY, .dev = number, .sub = 0}, waits);
    REQUIRE(close(waits.sum_ns, time.sum));
    REQUIRE(waits.count() > 20);
    const core::CounterValue switches = maps.counter({.kind = KV_VCPU_SWITCHES, .dev = number, .sub = 0});
    REQUIRE(switches.count > 20);  // preempted
    REQUIRE(switches.sum <= 2);    // moved: at its pinning
  }
}

TEST_CASE("time that passed before a process was watched is nobody's; what follows is counted from then on") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  // Not a name of a QEMU: the kernel gives it no slot.
  const TempDir dir;
  Child process(
      {"sh", "-c", "exec " KVMSCOPE_THREADS " 'CPU 0/KVM:600' worker:1 > " + (dir / "said").string()});
  // To begin takes an emulated processor as much as that: the work is the rest.
  rig.until([&] { return has_thread(process.pid(), "CPU 0/KVM"); });
  const std::uint64_t begun_ns = process.cpu_ns();
  rig.until([&] { return process.cpu_ns() > begun_ns + 100 * kMs; });
  REQUIRE(rig.tracer().claim(process.key()) == maps.identity());
  const std::uint64_t at_least_ns = process.cpu_ns();
  rig.tracer().count_threads();
  const std::uint64_t at_most_ns = process.cpu_ns();
  REQUIRE(all_of(maps).count == 0);
  rig.until([&] {
    rig.tracer().count_threads();
    return vcpu(maps, 0).count > 20 * kMs;
  });
  process.wait();
  rig.spin(std::chrono::milliseconds(20));
  const auto said = parse(run({"cat", (dir / "said").string()}));
  const std::uint64_t ran_ns = said.at("process").ran_ns;
  REQUIRE(all_of(maps).count > ran_ns - at_most_ns - 20 * kMs);
  REQUIRE(all_of(maps).count < ran_ns - at_least_ns + 20 * kMs);
}

TEST_CASE("a slot that changes hands: each owner has his part, to the ns") {
  Rig rig;
  const SlotMaps first = rig.spare(1);
  TempDir dir;
  Child process({"sh", "-c", rig.qemu(KVMSCOPE_THREADS) + " 'CPU 0/KVM:500' > " + (dir / "said").string()});
  rig.until([&] {
    rig.tracer().count_threads();
    return all_of(first).count > 20 * kMs;
  });
  const SlotMaps second = rig.spare(2);
  REQUIRE(rig.tracer().rebind(rig.processes.front().process) == second.identity());
  rig.tracer().count_threads();
  const core::CounterValue at_the_change = all_of(first);
  REQUIRE(at_the_change.count > 20 * kMs);
  process.wait();
  rig.spin(std::chrono::milliseconds(20));
  REQUIRE(all_of(first) == at_the_change);
  const auto said = parse(run({"cat", (dir / "said").string()}));
  REQUIRE(close(all_of(first).count + all_of(second).count, said.at("process").ran_ns));
}

TEST_CASE("a child of a VM is of its others, and what it becomes is not the VM's") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  run({rig.qemu("sh"), "-c",
       "(i=0; while [ $i -lt 6000 ]; do i=$((i+1)); done); exec 3>&1; i=0; while [ $i -lt 1000 ]; do "
       "i=$((i+1)); done; " KVMSCOPE_THREADS " worker:2000; true"});
  rig.until([&] { return thread(maps, KV_THREAD_EMULATOR).count > 0; });
  rig.spin(std::chrono::milliseconds(20));
  REQUIRE(thread(maps, KV_THREAD_OTHER).count > thread(maps, KV_THREAD_EMULATOR).count);
  REQUIRE(all_of(maps).count < 1'900 * kMs);
}

}  // namespace
}  // namespace kvmscope::bpf::test
