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
  const auto keys = tracer.disks(identity);
  const auto found = std::ranges::find(keys, key);
  REQUIRE(found != keys.end());
  return static_cast<std::uint16_t>(found - keys.begin());
}

TEST_CASE("a block device's reads and writes are counted exactly, by operation, in the process's own slot") {
  const auto hook = GENERATE(IdentityHook::io_start, IdentityHook::getrq);
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

  const std::uint16_t read_dev = dev_of(rig.tracer(), reader.identity(), disk.key());
  const Totals read = totals(reader, read_dev);
  REQUIRE(read.operations[KV_READ] == core::CounterValue{321, 321 * 4096});
  REQUIRE(read.operations[KV_WRITE] == core::CounterValue{});
  const std::uint16_t write_dev = dev_of(rig.tracer(), writer.identity(), disk.key());
  const Totals written = totals(writer, write_dev);
  REQUIRE(written.operations[KV_WRITE] == core::CounterValue{123, 123 * 16384});
  REQUIRE(written.operations[KV_READ] == core::CounterValue{});
  REQUIRE(duration(reader, KV_DISK_STORAGE_DURATION, read_dev, KV_READ).count() == 321);
  REQUIRE(duration(reader, KV_DISK_QUEUE_DURATION, read_dev, KV_READ).count() == 321);
  REQUIRE(duration(writer, KV_DISK_STORAGE_DURATION, write_dev, KV_WRITE).count() == 123);
  REQUIRE(rig.stat("late") == 0);
  REQUIRE(rig.stat("stale") == 0);
  REQUIRE(rig.stat("carry_full") == 0);
}

}  // namespace
}  // namespace kvmscope::bpf::test
