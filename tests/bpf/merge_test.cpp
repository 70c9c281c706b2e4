// SPDX-License-Identifier: Apache-2.0
// Requests that are split, merged, or find no place: judged by the device's own statistics, with a stranger's
// load on the same device.
#include <algorithm>
#include <fstream>
#include <memory>
#include <vector>

#include "tests/bpf/rig.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf::test {
namespace {

constexpr std::uint64_t kMiB = 1U << 20U;

/// Documentation/block/stat.rst
struct DeviceStat {
  core::CounterValue reads;
  core::CounterValue writes;
  std::uint64_t merges = 0;
};

DeviceStat stat_of(const std::string& device) {
  std::ifstream file("/sys/class/block/" + device.substr(5) + "/stat");
  std::uint64_t reads = 0, read_merges = 0, read_sectors = 0, ticks = 0;
  std::uint64_t writes = 0, write_merges = 0, write_sectors = 0;
  file >> reads >> read_merges >> read_sectors >> ticks >> writes >> write_merges >> write_sectors;
  return {{reads, read_sectors * 512}, {writes, write_sectors * 512}, read_merges + write_merges};
}

core::CounterValue grown(const core::CounterValue& before, const core::CounterValue& after) {
  return {after.count - before.count, after.sum - before.sum};
}

/// All disks of the slot: what went to a wrong one shows, too.
core::CounterValue counted(const SlotMaps& maps, kv_op op) {
  core::CounterValue sum;
  for (std::uint16_t dev = 0; dev < maps.shape().disks; ++dev) sum += totals(maps, dev).operations[op];
  return sum;
}

void write_to(const std::string& path, const std::string& text) {
  std::ofstream(path) << text;
}

/// Many tags, and requests of different tasks that meet in one scheduler.
void use_deadline(const LoopDevice& disk) {
  const std::string queue = "/sys/class/block/" + disk.path().substr(5) + "/queue/";
  write_to(queue + "scheduler", "mq-deadline");
  write_to(queue + "nr_requests", "1024");
}

Arguments load(const std::string& fio, const LoopDevice& disk, std::initializer_list<std::string> more) {
  Arguments arguments{fio, "--name=j", "--filename=" + disk.path(), "--direct=1", "--ioengine=io_uring"};
  arguments.insert(arguments.end(), more);
  return arguments;
}

TEST_CASE("what the block layer splits stays with its file") {
  Rig rig;
  const TempDir dir;
  write_file(dir / "image", 96 * kMiB);
  const LoopDevice disk(dir / "image");
  const Mount mount(disk.path(), dir / "mnt");
  write_file(mount / "a.raw", 32 * kMiB);
  run({"sync"});
  const SlotMaps maps = rig.spare(1, {.disks = 8});
  run({rig.qemu("dd"), "if=" + (mount / "a.raw").string(), "of=/dev/null", "bs=2M", "count=16",
       "iflag=direct"});
  rig.tracer().settle();
  const auto disks = rig.tracer().disks(maps.identity());
  REQUIRE(disks.size() == 1);
  REQUIRE(disks[0].key == file_key(mount / "a.raw"));
  const core::CounterValue read = totals(maps, 0).operations[KV_READ];
  REQUIRE(read.sum == 32 * kMiB);
  REQUIRE(read.count >= 16);
}

TEST_CASE("merged or not, seen or not: a VM has what the device says, a stranger beside it nothing") {
  const auto hook = GENERATE(from_range(identity_hooks()));
  const std::string strangers = GENERATE("", "--rw=randwrite", "--rw=write");
  CAPTURE(static_cast<int>(hook), strangers);
  Rig rig(hook);
  const TempDir dir;
  write_file(dir / "image", 64 * kMiB);
  const LoopDevice disk(dir / "image");
  use_deadline(disk);
  const SlotMaps maps = rig.spare(1);
  const DeviceStat before = stat_of(disk.path());
  std::unique_ptr<Child> stranger;
  if (!strangers.empty()) {
    stranger = std::make_unique<Child>(
        load("fio", disk,
             {strangers, "--bsrange=4k-16k", "--size=64M", "--iodepth=128", "--time_based", "--runtime=3"}));
  }
  run(load(rig.qemu("fio"), disk,
           {"--rw=randread", "--bs=4k", "--size=64M", "--iodepth=256", "--time_based", "--runtime=2"}));
  if (stranger) stranger->wait();
  rig.tracer().settle();
  CAPTURE(rig.stat("stale"));
  REQUIRE(counted(maps, KV_READ) == grown(before.reads, stat_of(disk.path()).reads));
  REQUIRE(counted(maps, KV_WRITE) == core::CounterValue{});
}

TEST_CASE("merged writes are counted as the device counts them; when the VM is gone nothing is left of it") {
  const auto hook = GENERATE(from_range(identity_hooks()));
  CAPTURE(static_cast<int>(hook));
  Rig rig(hook);
  const TempDir dir;
  write_file(dir / "image", 64 * kMiB);
  const LoopDevice disk(dir / "image");
  const SlotMaps maps = rig.spare(1);
  const auto sequential = {std::string("--rw=write"),
                           std::string("--bs=4k"),
                           std::string("--size=64M"),
                           std::string("--loops=8"),
                           std::string("--iodepth=64"),
                           std::string("--iodepth_batch_submit=8"),
                           std::string("--iodepth_batch_complete_min=4")};
  const DeviceStat before = stat_of(disk.path());
  Child reader(
      load("fio", disk,
           {"--rw=randread", "--bs=4k", "--size=64M", "--iodepth=16", "--time_based", "--runtime=6"}));
  run(load(rig.qemu("fio"), disk, sequential));
  rig.tracer().settle();
  const DeviceStat after = stat_of(disk.path());
  CAPTURE(rig.stat("stale"), after.merges - before.merges);
  REQUIRE(after.merges > before.merges);
  REQUIRE(counted(maps, KV_WRITE) == grown(before.writes, after.writes));
  REQUIRE(counted(maps, KV_WRITE).sum == 8 * 64 * kMiB);

  const core::CounterValue at_the_end = counted(maps, KV_WRITE);
  run(load("fio", disk, sequential));
  reader.wait();
  rig.tracer().settle();
  REQUIRE(counted(maps, KV_WRITE) == at_the_end);
  REQUIRE(counted(maps, KV_READ) == core::CounterValue{});
}

TEST_CASE("two VMs' writes in one request: each has its own bytes") {
  const auto hook = GENERATE(from_range(identity_hooks()));
  CAPTURE(static_cast<int>(hook));
  Rig rig(hook);
  const TempDir dir;
  write_file(dir / "image", 64 * kMiB);
  const LoopDevice disk(dir / "image");
  use_deadline(disk);
  const SlotMaps one = rig.spare(1);
  const SlotMaps two = rig.spare(2);
  // Every second block: nobody's own writes are neighbours.
  const auto stride = [&](const char* offset, const char* size, const char* loops) {
    return load(rig.qemu("fio"), disk,
                {"--rw=write:4k", "--bs=4k", std::string("--offset=") + offset, std::string("--size=") + size,
                 std::string("--loops=") + loops, "--iodepth=256", "--iodepth_batch_submit=32"});
  };
  const DeviceStat before = stat_of(disk.path());
  Child first(stride("0", "32M", "12"));
  Child second(stride("4k", "16M", "16"));
  REQUIRE(first.wait() == 0);
  REQUIRE(second.wait() == 0);
  rig.tracer().settle();
  const DeviceStat after = stat_of(disk.path());
  CAPTURE(rig.stat("stale"), after.merges - before.merges);
  REQUIRE(after.merges > before.merges);
  std::vector<std::uint64_t> bytes{counted(one, KV_WRITE).sum, counted(two, KV_WRITE).sum};
  std::ranges::sort(bytes);
  REQUIRE(bytes == std::vector<std::uint64_t>{16 / 2 * 16 * kMiB, 32 / 2 * 12 * kMiB});
  REQUIRE(grown(before.writes, after.writes).sum == bytes[0] + bytes[1]);
  REQUIRE(rig.stat("foreign_merged") == 0);
}

TEST_CASE("requests beyond the tags that a queue had at first are counted, too") {
  const auto hook = GENERATE(from_range(identity_hooks()));
  CAPTURE(static_cast<int>(hook));
  Rig rig(hook);
  const TempDir dir;
  write_file(dir / "image", 64 * kMiB);
  const LoopDevice disk(dir / "image");
  const SlotMaps first = rig.spare(1);
  run({rig.qemu("dd"), "if=" + disk.path(), "of=/dev/null", "bs=4k", "count=4", "iflag=direct"});
  use_deadline(disk);
  const SlotMaps maps = rig.spare(2);
  const DeviceStat before = stat_of(disk.path());
  Child stranger(load(
      "fio", disk,
      {"--rw=randwrite", "--bsrange=4k-16k", "--size=64M", "--iodepth=128", "--time_based", "--runtime=5"}));
  run(load(rig.qemu("fio"), disk,
           {"--rw=randread", "--bs=4k", "--size=64M", "--iodepth=256", "--time_based", "--runtime=4"}));
  stranger.wait();
  rig.tracer().settle();
  CAPTURE(rig.stat("stale"));
  REQUIRE(counted(maps, KV_READ) == grown(before.reads, stat_of(disk.path()).reads));
  REQUIRE(counted(maps, KV_WRITE) == core::CounterValue{});
  REQUIRE(rig.stat("carry_full") == 0);
}

}  // namespace
}  // namespace kvmscope::bpf::test
