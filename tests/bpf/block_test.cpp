// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "tests/bpf/rig.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf::test {
namespace {

constexpr std::size_t kMiB = 1U << 20U;

Arguments dd_read(const std::string& dd, const std::string& from, int count, const std::string& size = "4k") {
  return {dd, "if=" + from, "of=/dev/null", "bs=" + size, "count=" + std::to_string(count), "iflag=direct"};
}

Arguments dd_write(const std::string& dd, const std::string& to, int count, const std::string& size = "4k") {
  return {dd,
          "if=/dev/zero",
          "of=" + to,
          "bs=" + size,
          "count=" + std::to_string(count),
          "oflag=direct",
          "conv=notrunc"};
}

/// The number of a disk that the kernel gave by itself.
std::uint16_t dev_of(Tracer& tracer, core::SlotIdentity identity, DiskKey key) {
  const auto disks = tracer.disks(identity);
  const auto found = std::ranges::find(disks, key, &NumberedDisk::key);
  REQUIRE(found != disks.end());
  return static_cast<std::uint16_t>(found - disks.begin());
}

TEST_CASE("a block device's reads and writes are counted exactly, by operation, in the process's own slot") {
  const auto hook = GENERATE(from_range(identity_hooks()));
  CAPTURE(static_cast<int>(hook));
  Rig rig(hook);
  REQUIRE(rig.tracer().identity_hook() == hook);
  const TempDir dir;
  write_file(dir / "image", 16 * kMiB);
  const LoopDevice disk(dir / "image");
  const std::string dd = rig.qemu("dd");

  const SlotMaps reader = rig.spare(1);
  run(dd_read(dd, disk.path(), 321));
  const SlotMaps writer = rig.spare(2);
  run(dd_write(dd, disk.path(), 123, "16k"));

  rig.tracer().settle();
  const std::uint16_t read_dev = dev_of(rig.tracer(), reader.identity(), disk.key());
  const Totals read = totals(reader, read_dev);
  REQUIRE(read.operations[KV_READ] == core::CounterValue{321, 321 * 4096});
  REQUIRE(read.operations[KV_WRITE] == core::CounterValue{});
  const std::uint16_t write_dev = dev_of(rig.tracer(), writer.identity(), disk.key());
  const Totals written = totals(writer, write_dev);
  REQUIRE(written.operations[KV_WRITE] == core::CounterValue{123, 123 * 16384});
  REQUIRE(written.operations[KV_READ] == core::CounterValue{});
  // A completion that the kernel did not show counts without its delay.
  REQUIRE(duration(reader, KV_DISK_STORAGE_DURATION, read_dev, KV_READ).count() +
              duration(writer, KV_DISK_STORAGE_DURATION, write_dev, KV_WRITE).count() + rig.stat("stale") ==
          321 + 123);
  REQUIRE(duration(reader, KV_DISK_QUEUE_DURATION, read_dev, KV_READ).count() <= 321);
  REQUIRE(rig.stat("stale") < 10);
  REQUIRE(rig.stat("late") == 0);
  REQUIRE(rig.stat("carry_full") == 0);
}

TEST_CASE("two files on one file system are two disks of the VM") {
  Rig rig;
  const TempDir dir;
  write_file(dir / "image", 64 * kMiB);
  const LoopDevice disk(dir / "image");
  const Mount mount(disk.path(), dir / "mnt");
  write_file(mount / "a.raw", 8 * kMiB);
  write_file(mount / "b.raw", 8 * kMiB);
  run({"sync"});
  const std::string fio = rig.qemu("fio");

  const SlotMaps maps = rig.spare(1, {.disks = 8});
  run({fio, "--rw=randread", "--direct=1", "--ioengine=psync", "--size=8M", "--name=a",
       "--filename=" + (mount / "a.raw").string(), "--bs=4k", "--io_size=400k", "--name=b",
       "--filename=" + (mount / "b.raw").string(), "--bs=8k", "--io_size=4000k"});
  rig.tracer().settle();
  const std::uint16_t a = dev_of(rig.tracer(), maps.identity(), file_key(mount / "a.raw"));
  const std::uint16_t b = dev_of(rig.tracer(), maps.identity(), file_key(mount / "b.raw"));
  REQUIRE(rig.tracer().disks(maps.identity())[a].direct_file);
  REQUIRE(rig.tracer().disks(maps.identity())[b].direct_file);
  REQUIRE(a != b);
  REQUIRE(totals(maps, a).operations[KV_READ] == core::CounterValue{100, 100 * 4096});
  REQUIRE(totals(maps, b).operations[KV_READ] == core::CounterValue{500, 500 * 8192});
}

TEST_CASE("listed disks keep their numbers, and the last row collects those beyond the shape") {
  Rig rig;
  const TempDir dir;
  write_file(dir / "image", 4 * kMiB);
  const LoopDevice disk(dir / "image");
  const SlotMaps maps = rig.spare(1, {.disks = 2});
  const DiskKey keys[] = {disk_key(200, 1, 0), disk_key(200, 2, 0), disk_key(200, 3, 7), disk.key()};
  const auto numbers = rig.tracer().number_disks(maps.identity(), keys);
  REQUIRE(numbers == std::vector<std::uint16_t>{0, 1, 2, 3});
  const DiskKey again[] = {disk.key(), keys[0]};
  REQUIRE(rig.tracer().number_disks(maps.identity(), again) == std::vector<std::uint16_t>{3, 0});
  run(dd_read(rig.qemu("dd"), disk.path(), 10));
  rig.tracer().settle();
  REQUIRE(totals(maps, 0).operations[KV_READ] == core::CounterValue{});
  REQUIRE(totals(maps, 1).operations[KV_READ] == core::CounterValue{10, 40960});
}

TEST_CASE("a flush counts once, discards count their bytes") {
  const auto hook = GENERATE(from_range(identity_hooks()));
  CAPTURE(static_cast<int>(hook));
  Rig rig(hook);
  const TempDir dir;
  write_file(dir / "image", 8 * kMiB);
  const LoopDevice disk(dir / "image");

  const SlotMaps maps = rig.spare(1);
  Arguments write = dd_write(rig.qemu("dd"), disk.path(), 5);
  write.back() = "conv=notrunc,fsync";
  run(write);
  rig.tracer().settle();
  const std::uint16_t dev = dev_of(rig.tracer(), maps.identity(), disk.key());
  REQUIRE(totals(maps, dev).operations[KV_WRITE] == core::CounterValue{5, 5 * 4096});
  REQUIRE(totals(maps, dev).operations[KV_FLUSH] == core::CounterValue{1, 0});
  REQUIRE(duration(maps, KV_DISK_STORAGE_DURATION, dev, KV_FLUSH).count() <= 1);

  const SlotMaps discards = rig.spare(2);
  run({rig.qemu("blkdiscard"), "--offset", "1MiB", "--length", "4MiB", disk.path()});
  const std::uint16_t discard_dev = dev_of(rig.tracer(), discards.identity(), disk.key());
  rig.tracer().settle();
  REQUIRE(totals(discards, discard_dev).operations[KV_DISCARD].sum == 4 * kMiB);
  REQUIRE(totals(discards, discard_dev).operations[KV_DISCARD].count >= 1);
  REQUIRE(rig.stat("late") == 0);
}

TEST_CASE("two VMs at depth 64 on one disk: each has exactly its own bytes") {
  const auto hook = GENERATE(from_range(identity_hooks()));
  const std::string engine = GENERATE("libaio", "io_uring");
  CAPTURE(static_cast<int>(hook), engine);
  Rig rig(hook);
  const TempDir dir;
  write_file(dir / "image", 64 * kMiB);
  const LoopDevice disk(dir / "image");
  const std::string fio = rig.qemu("fio");
  const Arguments common{fio,
                         "--name=j",
                         "--filename=" + disk.path(),
                         "--direct=1",
                         "--iodepth=64",
                         "--ioengine=" + engine,
                         "--allow_mounted_write=1"};
  const auto job = [&common](Arguments more) {
    more.insert(more.begin(), common.begin(), common.end());
    return more;
  };

  const SlotMaps one = rig.spare(1);
  Child first(job({"--rw=randread", "--bs=4k", "--size=32M"}));
  rig.until([&] { return rig.processes.size() == 1; });
  const SlotMaps two = rig.spare(2);
  // Sequential, so that requests merge.
  Child second(job({"--rw=write", "--bs=16k", "--size=48M"}));
  REQUIRE(first.wait() == 0);
  REQUIRE(second.wait() == 0);

  rig.tracer().settle();
  CAPTURE(rig.stat("stale"));
  const Totals read = totals(one, dev_of(rig.tracer(), one.identity(), disk.key()));
  const Totals written = totals(two, dev_of(rig.tracer(), two.identity(), disk.key()));
  REQUIRE(read.operations[KV_READ].sum == 32 * kMiB);
  REQUIRE(read.operations[KV_WRITE].sum == 0);
  REQUIRE(written.operations[KV_WRITE].sum == 48 * kMiB);
  REQUIRE(written.operations[KV_READ].sum == 0);
  REQUIRE(read.operations[KV_READ].count <= 8192);
  REQUIRE(rig.stat("carry_full") + rig.stat("bio_full") + rig.stat("late") == 0);
}

/// A RAM disk without requests, made for one test.
class Zram {
 public:
  explicit Zram(const std::string& size) {
    number_ = run({"cat", "/sys/class/zram-control/hot_add"});
    number_.pop_back();
    run({"sh", "-c", "echo " + size + " > /sys/block/zram" + number_ + "/disksize"});
    if (!std::filesystem::exists(path())) {
      run({"sh", "-c", "mknod " + path() + " b $(tr ':' ' ' < /sys/block/zram" + number_ + "/dev)"});
    }
  }
  ~Zram() {
    run_status({"sh", "-c", "echo 1 > /sys/block/zram" + number_ + "/reset"});
    run_status({"sh", "-c", "echo " + number_ + " > /sys/class/zram-control/hot_remove"});
  }
  Zram(const Zram&) = delete;
  Zram& operator=(const Zram&) = delete;
  std::string path() const { return "/dev/zram" + number_; }

 private:
  std::string number_;
};

TEST_CASE("a device without requests is counted by its bios once that is asked for") {
  Rig rig;
  const Zram disk("16M");
  run({"dd", "if=/dev/urandom", "of=" + disk.path(), "bs=1M", "count=16", "oflag=direct"});
  const std::string dd = rig.qemu("dd");
  const SlotMaps before = rig.spare(1);
  run(dd_read(dd, disk.path(), 10));
  for (std::uint16_t dev = 0; dev < 4; ++dev) REQUIRE(totals(before, dev).operations[KV_READ].count == 0);

  REQUIRE(rig.tracer().need_bio_devices());
  REQUIRE(rig.tracer().need_bio_devices());
  const SlotMaps maps = rig.spare(2);
  run(dd_read(dd, disk.path(), 77));
  REQUIRE(rig.tracer().disks(maps.identity()).size() == 1);
  rig.tracer().settle();
  REQUIRE(totals(maps, 0).operations[KV_READ] == core::CounterValue{77, 77 * 4096});
  REQUIRE(duration(maps, KV_DISK_STORAGE_DURATION, 0, KV_READ).count() == 77);
}

TEST_CASE("an imposed delay shows in the bucket of issue to completion") {
  Rig rig;
  const TempDir dir;
  write_file(dir / "image", kMiB);
  const NbdDisk slow(dir / "slow", {"--filter=delay", "file", (dir / "image").string(), "rdelay=50ms"});
  const LoopDevice disk(slow.disk());
  const SlotMaps maps = rig.spare(1);
  run(dd_read(rig.qemu("dd"), disk.path(), 10));
  const std::uint16_t dev = dev_of(rig.tracer(), maps.identity(), disk.key());
  const core::HistogramValue delays = duration(maps, KV_DISK_STORAGE_DURATION, dev, KV_READ);
  REQUIRE(delays.count() == 10);
  REQUIRE(delays.sum_ns >= 500'000'000);
  for (std::size_t i = 0; i + 1 < kv_bucket(50'000'000); ++i) REQUIRE(delays.buckets[i] == 0);
}

TEST_CASE("errors of the storage are counted by kind and told to the tenant alone") {
  Rig rig;
  const TempDir dir;
  const NbdDisk faulty(dir / "faulty", {"--filter=error", "memory", "1M", "error-pread=EIO",
                                        "error-pread-rate=1", "error-pwrite=ENOSPC", "error-pwrite-rate=1"});
  const LoopDevice disk(faulty.disk());
  REQUIRE(rig.tracer().add_tenant(1, 4096));
  REQUIRE(rig.tracer().add_tenant(2, 4096));
  rig.spin(std::chrono::milliseconds(100));
  const std::string dd = rig.qemu("dd");

  const SlotMaps maps = rig.spare(1);
  REQUIRE(rig.tracer().set_tenant(maps.identity(), 1));
  REQUIRE(run_status(dd_read(dd, disk.path(), 1)) != 0);
  rig.until([&] { return !rig.io_errors.empty(); });
  const std::uint16_t dev = dev_of(rig.tracer(), maps.identity(), disk.key());
  const auto reads = maps.counter({.kind = KV_DISK_ERRORS, .dev = dev, .sub = KV_ERROR_IO});
  REQUIRE(reads.count >= 1);
  rig.tracer().settle();
  REQUIRE(totals(maps, dev).operations[KV_READ].count == reads.count);
  REQUIRE(totals(maps, dev).operations[KV_READ].sum == 0);
  REQUIRE(rig.io_errors.size() == reads.count);
  REQUIRE(rig.io_errors.front().tenant_index == 1);
  REQUIRE(rig.io_errors.front().identity == maps.identity());
  REQUIRE(rig.io_errors.front().event.dev == dev);
  REQUIRE(rig.io_errors.front().event.sub == KV_ERROR_IO);
  REQUIRE(rig.io_errors.front().event.bytes == 4096);

  const SlotMaps full = rig.spare(2);
  REQUIRE(rig.tracer().set_tenant(full.identity(), 2));
  REQUIRE(run_status(dd_write(dd, disk.path(), 1)) != 0);
  const std::uint16_t full_dev = dev_of(rig.tracer(), full.identity(), disk.key());
  REQUIRE(full.counter({.kind = KV_DISK_ERRORS,
                        .dev = full_dev,
                        .sub = std::uint16_t{KV_WRITE} * std::uint16_t{KV_ERRORS} + KV_ERROR_NOSPC})
              .count >= 1);

  // More errors than a ring of 4 KiB holds, with nobody reading meanwhile.
  rig.spin(std::chrono::milliseconds(50));
  rig.io_errors.clear();
  const SlotMaps noisy = rig.spare(3);
  REQUIRE(rig.tracer().set_tenant(noisy.identity(), 1));
  Arguments many = dd_read(dd, disk.path(), 200);
  many.push_back("conv=noerror");
  run_status(many);
  const std::uint64_t errors = totals(noisy, dev_of(rig.tracer(), noisy.identity(), disk.key())).errors;
  REQUIRE(errors >= 200);
  REQUIRE(rig.tracer().ring_drops(1) > 0);
  REQUIRE(rig.tracer().ring_drops(2) == 0);
  REQUIRE(rig.tracer().ring_drops(0) == 0);
  rig.until([&] { return rig.io_errors.size() + rig.tracer().ring_drops(1) == errors; });

  // Another tenant's at the same index starts from none.
  rig.tracer().remove_tenant(1);
  REQUIRE(rig.tracer().add_tenant(1, 4096));
  REQUIRE(rig.tracer().ring_drops(1) == 0);
}

}  // namespace
}  // namespace kvmscope::bpf::test
