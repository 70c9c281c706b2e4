// SPDX-License-Identifier: Apache-2.0
// What tracing costs a block request and a switch of tasks: nanoseconds of each program by the kernel's own
// run counts, beside an empty program on the same hook; for a request also beside biolatency (libbpf-tools),
// on the same load: fio on a loop device over tmpfs.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <kernel_empty.skel.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "hostd/core/unique_fd.h"
#include "tests/bench/costs.h"
#include "tests/bpf/rig.h"
#include "tests/bpf/tap.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf::test {
namespace {

class Tmpfs {
 public:
  explicit Tmpfs(std::filesystem::path where) : where_(std::move(where)) {
    std::filesystem::create_directory(where_);
    REQUIRE(::mount("none", where_.c_str(), "tmpfs", 0, "size=96m") == 0);
  }
  ~Tmpfs() { ::umount2(where_.c_str(), MNT_DETACH); }
  Tmpfs(const Tmpfs&) = delete;
  Tmpfs& operator=(const Tmpfs&) = delete;

 private:
  std::filesystem::path where_;
};

/// A loop device on memory, without direct I/O (tmpfs has none).
class MemoryDisk {
 public:
  MemoryDisk() : tmpfs_(dir_ / "mem") {
    write_file(dir_ / "mem" / "image", 64U << 20U);
    path_ = run({"losetup", "--find", "--show", (dir_ / "mem" / "image").string()});
    path_.pop_back();
  }
  ~MemoryDisk() { run_status({"losetup", "-d", path_}); }
  MemoryDisk(const MemoryDisk&) = delete;
  MemoryDisk& operator=(const MemoryDisk&) = delete;
  const std::string& path() const { return path_; }

 private:
  TempDir dir_;
  Tmpfs tmpfs_;
  std::string path_;
};

Arguments load(const std::string& fio, const std::string& disk) {
  return {fio,           "--name=j",          "--filename=" + disk, "--direct=1",
          "--bs=4k",     "--rw=randread",     "--norandommap",      "--size=64M",
          "--loops=100", "--ioengine=libaio", "--iodepth=32",       "--time_based",
          "--runtime=5", "--thread"};
}

struct DestroyEmpty {
  void operator()(kernel_empty* skeleton) const { kernel_empty__destroy(skeleton); }
};

using Empty = std::unique_ptr<kernel_empty, DestroyEmpty>;

Empty attach_empty() {
  Empty empty(kernel_empty__open());
  REQUIRE(empty);
  bpf_program__set_autoload(empty->progs.empty_start, identity_hooks().front() == IdentityHook::io_start);
  REQUIRE(kernel_empty__load(empty.get()) == 0);
  REQUIRE(kernel_empty__attach(empty.get()) == 0);
  return empty;
}

TEST_CASE("cost of a switch") {
  const core::UniqueFd stats(bpf_enable_stats(BPF_STATS_RUN_TIME));
  REQUIRE(stats);
  const Empty empty = attach_empty();
  Rig rig;
  const auto above = [&](const std::string& program, const char* prefix, const char* threads,
                         const char* rounds) {
    const Costs ours = costs("kv_switch");
    const Costs none = costs("empty_switch");
    run({program, prefix, threads, rounds});
    const Cost own = since(costs("kv_switch"), ours).at("kv_switch");
    const Cost nothing = since(costs("empty_switch"), none).at("empty_switch");
    std::printf("%-12s %4s threads: %9lu switches, %6.1f ns, empty %5.1f ns\n", prefix, threads, own.runs,
                own.each(), nothing.each());
    return own.each() - nothing.each();
  };
  const double hot = above(KVMSCOPE_SWITCHES, "foreign ", "2", "500000");
  const double cold = above(KVMSCOPE_SWITCHES, "foreign ", "500", "2000");
  const SlotMaps maps = rig.spare(1, {.disks = 4, .vcpus = 600});
  const double vcpu = above(rig.qemu(KVMSCOPE_SWITCHES), "CPU ", "2", "500000");
  const SlotMaps more = rig.spare(2, {.disks = 4, .vcpus = 600});
  const double many = above(rig.qemu(KVMSCOPE_SWITCHES), "CPU ", "500", "2000");
  const SlotMaps others = rig.spare(3);
  const double other = above(rig.qemu(KVMSCOPE_SWITCHES), "worker ", "2", "500000");
  std::printf(
      "above the empty program: foreign task %.0f ns hot, %.0f cold (target 30); vCPU %.0f hot, %.0f cold; "
      "another thread of a VM %.0f\n",
      hot, cold, vcpu, many, other);
}

/// A tap's queue is filled and emptied again and again; what its VM sends goes nowhere.
double packets(Tap& tap, const char* title) {
  const Costs ours = costs("kv_net_");
  const Costs none = costs("empty_");
  for (int round = 0; round < 200; ++round) {
    tap.inject(400, 200);
    tap.act("take 400");
    tap.act("send 400 200");
  }
  const Costs own = since(costs("kv_net_"), ours);
  Costs nothing = since(costs("empty_"), none);
  std::erase_if(nothing, [](const auto& entry) {
    return entry.first != "empty_queued" && entry.first != "empty_refused" && entry.first != "empty_taken" &&
           entry.first != "empty_sent";
  });
  print(title, own);
  print("  empty programs:", nothing);
  return sum(own) - sum(nothing);
}

TEST_CASE("cost of a packet") {
  const core::UniqueFd stats(bpf_enable_stats(BPF_STATS_RUN_TIME));
  REQUIRE(stats);
  const Empty empty = attach_empty();
  Rig rig;
  Tap stranger(rig, "t0", false);
  const double foreign = packets(stranger, "foreign packet:");
  const SlotMaps maps = rig.spare(1);
  Tap tap(rig, "t0");
  const double own = packets(tap, "a VM's packet:");
  REQUIRE(maps.counter({.kind = KV_NIC_PACKETS, .dev = 0, .sub = KV_TRANSMIT}).count == 80'000);
  std::printf("above empty programs, to and from a guest together: VM %.0f ns, foreign %.0f ns\n", own,
              foreign);
}

TEST_CASE("cost of a block request's programs") {
  const MemoryDisk disk;
  const core::UniqueFd stats(bpf_enable_stats(BPF_STATS_RUN_TIME));
  REQUIRE(stats);

  const Empty empty = attach_empty();

  double vm_ns = 0;
  double foreign_ns = 0;
  {
    Rig rig;
    const SlotMaps maps = rig.spare(1);
    // One request of a VM, so that the queue is known: what a foreign one costs at worst.
    Child vm({rig.qemu("dd"), "if=" + disk.path(), "of=/dev/null", "bs=4k", "count=1", "iflag=direct"});
    REQUIRE(vm.wait() == 0);
    Costs ours = costs("kv_");
    Costs none = costs("empty_");
    run(load("fio", disk.path()));
    Costs foreign = since(costs("kv_"), ours);
    Costs foreign_empty = since(costs("empty_"), none);
    foreign_empty.erase("empty_switch");
    print("foreign request, on a queue that a VM uses:", foreign);
    print("  empty programs:", foreign_empty);
    foreign_ns = sum({{"s", foreign["kv_io_start"]},
                      {"i", foreign["kv_rq_issue"]},
                      {"c", foreign["kv_rq_complete"]}}) -
                 sum(foreign_empty);

    // A disk that the daemon has listed, as those of named VMs are.
    const SlotMaps fresh = rig.spare(2);
    struct stat device{};
    REQUIRE(::stat(disk.path().c_str(), &device) == 0);
    const DiskKey key = disk_key(major(device.st_rdev), minor(device.st_rdev), 0);
    REQUIRE(rig.tracer().number_disks(fresh.identity(), {&key, 1}));
    const std::string fio = rig.qemu("fio");
    ours = costs("kv_");
    none = costs("empty_");
    run(load(fio, disk.path()));
    Costs own = since(costs("kv_"), ours);
    Costs own_empty = since(costs("empty_"), none);
    own_empty.erase("empty_switch");
    print("VM request:", own);
    print("  empty programs:", own_empty);
    vm_ns = sum({{"s", own["kv_io_start"]}, {"i", own["kv_rq_issue"]}, {"c", own["kv_rq_complete"]}}) -
            sum(own_empty);
    REQUIRE(totals(fresh, 0).operations[KV_READ].count > 1000);
  }

  Child biolatency({"biolatency", "7", "1"});
  std::this_thread::sleep_for(std::chrono::milliseconds(1500));
  const Costs bio_before = costs("block_rq_");
  const Costs none = costs("empty_");
  run(load("fio", disk.path()));
  const Costs bio = since(costs("block_rq_"), bio_before);
  const Costs bio_empty = since(costs("empty_"), none);
  print("biolatency (libbpf-tools):", bio);
  const double bio_ns =
      sum(bio) - (bio_empty.at("empty_issue").each() + bio_empty.at("empty_complete").each());

  std::printf(
      "above empty programs: VM request %.0f ns (target 280), foreign request %.0f ns (target 60), "
      "biolatency %.0f ns for every request\n",
      vm_ns, foreign_ns, bio_ns);
  std::printf("ratio: VM / biolatency %.2f, foreign / biolatency %.2f\n", vm_ns / bio_ns,
              foreign_ns / bio_ns);
}

}  // namespace
}  // namespace kvmscope::bpf::test
