// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <thread>

#include "bpf/process_files.h"
#include "tests/bpf/rig.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf::test {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kMiB = 1U << 20U;

Arguments dd_read(const std::string& dd, const std::string& from, int count) {
  return {dd, "if=" + from, "of=/dev/null", "bs=4k", "count=" + std::to_string(count), "iflag=direct"};
}

/// Reads of all disks of a slot.
core::CounterValue reads(const SlotMaps& maps) {
  core::CounterValue sum;
  for (std::uint16_t dev = 0; dev < maps.shape().disks; ++dev) sum += totals(maps, dev).operations[KV_READ];
  return sum;
}

/// A disk whose reads take this long, written image below.
struct SlowDisk {
  explicit SlowDisk(const std::string& read_delay)
      : image([this] {
          write_file(dir / "image", kMiB);
          return dir / "image";
        }()),
        server(dir / "slow", {"--filter=delay", "file", image.string(), "rdelay=" + read_delay}),
        loop(server.disk()) {}
  TempDir dir;
  std::filesystem::path image;
  NbdDisk server;
  LoopDevice loop;
};

TEST_CASE("all that this kernel needs is loaded and attached") {
  Rig rig;
  std::size_t attached = 0;
  for (const ProgramInfo& program : rig.tracer().programs()) {
    INFO(program.name << ": " << program.why_not);
    REQUIRE(program.attached == program.why_not.empty());
    attached += program.attached;
    if (program.attached) {
      REQUIRE(program.verified_instructions > 0);
      REQUIRE(program.verified_instructions < 200'000);
      REQUIRE(program.jited_bytes > 0);
    }
  }
  REQUIRE(attached == 19);
  REQUIRE(rig.tracer().programs().front().map_bytes > 0);
  REQUIRE(rig.tracer().enable_run_stats(true));
  run({"true"});
  const auto programs = rig.tracer().programs();
  const auto exec = std::ranges::find(programs, "kv_exec", &ProgramInfo::name);
  REQUIRE(exec->run_count > 0);
  REQUIRE(exec->run_time_ns > 0);
  REQUIRE(rig.tracer().enable_run_stats(false));
}

TEST_CASE("two tracers at once do not disturb each other") {
  Rig one;
  Rig two;
  const SlotMaps maps = one.spare(1);
  run({one.qemu("uname")});
  one.until([&] { return one.processes.size() == 2; });
  REQUIRE(two.processes.empty());
  REQUIRE(two.stat("no_spare") == 1);
}

TEST_CASE("a QEMU takes a spare slot at exec, and its end is told") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  REQUIRE(rig.tracer().spares() == 1);
  Child vm({rig.qemu("sleep"), "30"});
  rig.until([&] { return !rig.processes.empty(); });
  const ProcessEvent claimed = rig.processes.front();
  REQUIRE(claimed.type == ProcessEvent::Type::claimed);
  REQUIRE(claimed.identity == maps.identity());
  REQUIRE(claimed.process == vm.key());
  REQUIRE(claimed.comm == (Rig::qemu_prefix() + "sleep").substr(0, KV_COMM_BYTES - 1));
  REQUIRE(rig.tracer().spares() == 0);
  REQUIRE(rig.tracer().claim(vm.key()) == maps.identity());
  REQUIRE(rig.tracer().processes() == std::vector{std::pair{vm.key(), maps.identity()}});

  const core::ProcessKey key = vm.key();
  ::kill(vm.pid(), SIGTERM);
  rig.until([&] { return rig.processes.size() == 2; });
  REQUIRE(rig.processes.back().type == ProcessEvent::Type::exited);
  REQUIRE(rig.processes.back().process == key);
  REQUIRE(rig.processes.back().identity == maps.identity());
  REQUIRE(rig.tracer().processes().size() == 1);
  rig.tracer().unbind(key);
  REQUIRE(rig.tracer().processes().empty());
}

TEST_CASE("a process that is no QEMU takes no slot until it is claimed, and none when it is gone") {
  Rig rig;
  const TempDir dir;
  write_file(dir / "image", kMiB);
  const LoopDevice disk(dir / "image");
  const SlotMaps maps = rig.spare(1);
  const SlotMaps other = rig.spare(2);
  run(dd_read("dd", disk.path(), 10));
  REQUIRE(rig.tracer().spares() == 2);

  // The daemon finds it, as it finds the guests that run when it starts.
  Child vm({"sh", "-c", "sleep 1; exec dd if=" + disk.path() + " of=/dev/null bs=4k count=50 iflag=direct"});
  const auto identity = rig.tracer().claim(vm.key());
  REQUIRE(identity);
  REQUIRE(vm.wait() == 0);
  rig.tracer().settle();
  const SlotMaps& mine = *identity == maps.identity() ? maps : other;
  REQUIRE(reads(mine) == core::CounterValue{50, 50 * 4096});
  REQUIRE(reads(&mine == &maps ? other : maps).count == 0);

  const auto gone = rig.tracer().claim({.tgid = 4'000'000, .start_ticks = 1});
  REQUIRE_FALSE(gone);
  REQUIRE(gone.error().code() == core::ErrorCode::not_found);
  REQUIRE(rig.tracer().spares() == 1);
}

TEST_CASE("with an empty pool a QEMU counts in the host's slot until it gets one") {
  Rig rig;
  const TempDir dir;
  write_file(dir / "image", kMiB);
  const LoopDevice disk(dir / "image");
  run(dd_read(rig.qemu("dd"), disk.path(), 20));
  rig.until([&] { return !rig.processes.empty(); });
  REQUIRE(rig.processes.front().type == ProcessEvent::Type::no_spare_slot);
  REQUIRE(rig.stat("no_spare") == 1);
  REQUIRE(rig.stat("unattributed") >= 20);
  rig.tracer().settle();
  REQUIRE(reads(rig.tracer().host_maps()).count >= 20);

  Child vm({rig.qemu("sleep"), "30"});
  rig.until([&] { return rig.stat("no_spare") == 2; });
  const auto none = rig.tracer().claim(vm.key());
  REQUIRE_FALSE(none);
  REQUIRE(none.error().code() == core::ErrorCode::resource_exhausted);
  const SlotMaps maps = rig.spare(1);
  REQUIRE(rig.tracer().claim(vm.key()) == maps.identity());
}

TEST_CASE("what a child of a VM does counts, until it executes something else") {
  Rig rig;
  const TempDir dir;
  write_file(dir / "image", kMiB);
  const LoopDevice disk(dir / "image");
  const SlotMaps maps = rig.spare(1);
  // A shell that counts as QEMU: dd is another program in a child.
  run({rig.qemu("dash"), "-c", "dd if=" + disk.path() + " of=/dev/null bs=4k count=30 iflag=direct; true"});
  rig.tracer().settle();
  REQUIRE(reads(maps).count == 0);
  rig.until([&] { return rig.processes.size() == 2; });
}

/// A cgroup of the unified hierarchy.
class Cgroup {
 public:
  Cgroup() {
    std::ifstream mounts("/proc/self/mounts");
    for (std::string line; std::getline(mounts, line);) {
      const auto first = line.find(' ');
      const auto second = line.find(' ', first + 1);
      if (line.substr(second + 1).starts_with("cgroup2 ")) path_ = line.substr(first + 1, second - first - 1);
    }
    REQUIRE_FALSE(path_.empty());
    path_ /= "kvmscope-bpf-test-" + std::to_string(::getpid());
    std::filesystem::create_directories(path_ / "child");
  }
  ~Cgroup() {
    ::rmdir((path_ / "child").c_str());
    ::rmdir(path_.c_str());
  }
  Cgroup(const Cgroup&) = delete;
  Cgroup& operator=(const Cgroup&) = delete;
  std::uint64_t id() const {
    struct stat info{};
    REQUIRE(::stat(path_.c_str(), &info) == 0);
    return info.st_ino;
  }
  std::filesystem::path child() const { return path_ / "child"; }

 private:
  std::filesystem::path path_;
};

TEST_CASE("helpers and processes in a VM's cgroups belong to it, and follow it to another slot") {
  Rig rig;
  const TempDir dir;
  write_file(dir / "image", kMiB);
  const LoopDevice disk(dir / "image");
  const Cgroup cgroup;
  const SlotMaps first = rig.spare(1);
  Child vm({rig.qemu("sleep"), "60"});
  rig.until([&] { return !rig.processes.empty(); });
  // A helper that waits for a file, reads, and waits for another one.
  const auto wait_and_read = [&](const std::string& file, int count) {
    return "while ! test -e " + (dir / file).string() + "; do sleep 0.05; done; dd if=" + disk.path() +
           " of=/dev/null bs=4k iflag=direct count=" + std::to_string(count) + "; ";
  };
  const std::uint64_t ids[] = {cgroup.id()};
  REQUIRE(rig.tracer().bind(vm.key(), ids, {}));
  const std::string enter = "echo $$ > " + (cgroup.child() / "cgroup.procs").string() + "; ";
  Child helper({"sh", "-c", enter + wait_and_read("one", 11) + wait_and_read("two", 13) + "true"});
  std::ofstream(dir / "one").put('1');
  rig.until([&] {
    rig.tracer().settle();
    return reads(first).count == 11;
  });

  const SlotMaps second = rig.spare(2);
  REQUIRE(rig.tracer().rebind(vm.key()) == second.identity());
  std::ofstream(dir / "two").put('2');
  REQUIRE(helper.wait() == 0);
  rig.tracer().settle();
  REQUIRE(reads(first).count == 11);
  REQUIRE(reads(second).count == 13);

  // By process: the reader itself is named.
  Child named(
      {"sh", "-c", "sleep 0.5; exec dd if=" + disk.path() + " of=/dev/null bs=4k iflag=direct count=7"});
  const core::ProcessKey helpers[] = {named.key()};
  REQUIRE(rig.tracer().bind(vm.key(), {}, helpers));
  REQUIRE(named.wait() == 0);
  rig.tracer().settle();
  REQUIRE(reads(second).count == 20);
  rig.tracer().unbind(vm.key());
  REQUIRE(rig.tracer().processes().empty());
}

TEST_CASE("growing a slot under load loses nothing") {
  Rig rig;
  const TempDir dir;
  write_file(dir / "image", 16 * kMiB);
  const LoopDevice disk(dir / "image");
  std::vector<SlotMaps> all;
  all.push_back(rig.spare(1, {.disks = 1}));
  Child vm({rig.qemu("fio"), "--name=j", "--filename=" + disk.path(), "--direct=1", "--rw=randread",
            "--bs=4k", "--size=16M", "--loops=20", "--ioengine=libaio", "--iodepth=16"});
  for (std::uint16_t disks = 2; disks < 12; ++disks) {
    rig.until([&] { return reads(all.back()).count > 100 || !vm.running(); });
    all.push_back(rig.grow(all.back(), {.disks = disks}));
  }
  REQUIRE(vm.wait() == 0);
  rig.tracer().settle();
  core::CounterValue sum;
  std::uint64_t delays = 0;
  for (const SlotMaps& maps : all) {
    sum += reads(maps);
    for (std::uint16_t dev = 0; dev < maps.shape().disks; ++dev) {
      delays += duration(maps, KV_DISK_STORAGE_DURATION, dev, KV_READ).count();
    }
  }
  REQUIRE(sum.sum == 20 * 16 * kMiB);
  REQUIRE(delays + rig.stat("stale") == sum.count);
  REQUIRE(std::ranges::count_if(all, [](const SlotMaps& maps) { return reads(maps).count > 0; }) > 1);
}

TEST_CASE("what is in flight when its slot is retired is late, and never the next tenancy's") {
  Rig rig;
  const SlowDisk disk("700ms");
  const SlotMaps old = rig.spare(1);
  Child vm(dd_read(rig.qemu("dd"), disk.loop.path(), 1));
  rig.until([&] { return !rig.processes.empty(); });
  rig.spin(200ms);
  REQUIRE(rig.retire(old.identity()));
  REQUIRE_FALSE(rig.tracer().offer_spare(old.identity()));
  const SlotMaps next = rig.install(1);
  REQUIRE(vm.wait() == 0);
  REQUIRE(rig.stat("late") == 1);
  rig.tracer().settle();
  REQUIRE(reads(old).count == 0);
  REQUIRE(reads(next).count == 0);
  REQUIRE(rig.tracer().disks(next.identity()).empty());
}

TEST_CASE("a process that changes its slot leaves what is in flight in the old one") {
  Rig rig;
  const SlowDisk disk("700ms");
  const SlotMaps before = rig.spare(1);
  Child vm(dd_read(rig.qemu("dd"), disk.loop.path(), 3));
  rig.until([&] { return !rig.processes.empty(); });
  const SlotMaps after = rig.spare(2);
  rig.until([&] { return !rig.tracer().disks(before.identity()).empty(); });
  REQUIRE(rig.tracer().rebind(vm.key()) == after.identity());
  REQUIRE(vm.wait() == 0);
  rig.tracer().settle();
  REQUIRE(reads(before) == core::CounterValue{1, 4096});
  REQUIRE(reads(after) == core::CounterValue{2, 8192});
  REQUIRE(rig.stat("late") == 0);
}

TEST_CASE("what is in flight when a process gets its slot is nobody's") {
  Rig rig;
  const SlowDisk disk("700ms");
  Child vm(dd_read("dd", disk.loop.path(), 2));
  std::this_thread::sleep_for(300ms);
  const SlotMaps maps = rig.spare(1);
  REQUIRE(rig.tracer().claim(vm.key()) == maps.identity());
  REQUIRE(vm.wait() == 0);
  rig.tracer().settle();
  REQUIRE(reads(maps) == core::CounterValue{1, 4096});
  REQUIRE(rig.stat("late") + rig.stat("stale") == 0);
}

TEST_CASE("a slot in use is not installed again, an unknown one not grown or retired") {
  Rig rig;
  const SlotMaps maps = rig.install(1);
  bool refused = false;
  rig.tracer().install({.slot = {1}, .generation = {9}}, core::Incarnation{9}, {},
                       [&](core::Result<SlotMaps> again) {
                         refused = !again && again.error().code() == core::ErrorCode::already_exists;
                       });
  rig.until([&] { return refused; });
  REQUIRE_FALSE(rig.retire({.slot = {1}, .generation = {9}}));
  REQUIRE_FALSE(rig.retire({.slot = {5}, .generation = {1}}));
  REQUIRE_FALSE(rig.tracer().set_tenant({.slot = {1}, .generation = {9}}, 0));
}

TEST_CASE("the host's features are found out, and what is missing says what it costs") {
  const auto features = probe_host();
  for (const char* needed : {"kernel", "btf", "capabilities", "task storage", "tp_btf block_rq_complete"}) {
    const auto found = std::ranges::find(features, needed, &core::HostFeature::name);
    INFO(needed);
    REQUIRE(found != features.end());
    REQUIRE(found->present);
    REQUIRE_FALSE(found->detail.empty());
  }
  for (const core::HostFeature& feature : features) REQUIRE_FALSE(feature.detail.empty());
}

}  // namespace
}  // namespace kvmscope::bpf::test
