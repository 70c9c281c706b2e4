// SPDX-License-Identifier: Apache-2.0
// Completions that the kernel shows to no program (docs/adr/0006), forced: what is remembered of a request
// that has ended is put back as if its end had not been seen.
#include "bpf/abi.h"
// its layouts are the ABI's
#include <bpf/bpf.h>
#include <programs.skel.h>

#include <fstream>
#include <optional>
#include <set>

#include "bpf/slot_maps.h"
#include "hostd/core/unique_fd.h"
#include "tests/bpf/rig.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf::test {
namespace {

/// The newest map of this name: the rig's.
core::UniqueFd map_named(const std::string& name) {
  core::UniqueFd newest;
  for (__u32 id = 0; bpf_map_get_next_id(id, &id) == 0;) {
    core::UniqueFd fd(bpf_map_get_fd_by_id(id));
    bpf_map_info info{};
    __u32 size = sizeof(info);
    if (fd && bpf_obj_get_info_by_fd(fd.get(), &info, &size) == 0 && name == info.name)
      newest = std::move(fd);
  }
  REQUIRE(newest);
  return newest;
}

/// What the programs remember of requests, to be changed.
class Remembered {
 public:
  explicit Remembered(const SlotMaps& maps)
      : identity_(maps.identity()), carries_(map_named("carries")), bss_map_(map_named("programs.bss")) {
    auto view = MapView::open(bss_map_.get(), sizeof(programs::programs__bss), true);
    REQUIRE(view);
    bss_view_ = std::move(*view);
  }

  kv_globals& globals() { return reinterpret_cast<programs::programs__bss*>(bss_view_.data())->globals; }

  /// Of each tag that the slot's VM has used.
  std::vector<std::pair<__u32, kv_carry>> ended() {
    std::vector<std::pair<__u32, kv_carry>> found;
    for (__u32 index = 0; index < globals().carry_cursor; ++index) {
      kv_carry carry{};
      if (bpf_map_lookup_elem(carries_.get(), &index, &carry) != 0) break;
      if (carry.start_ns == 0 && carry.rq != 0 && carry.id.slot == identity_.slot.value &&
          carry.id.generation == identity_.generation.value) {
        found.emplace_back(index, carry);
      }
    }
    return found;
  }

  /// As it was before its completion.
  void put_back(__u32 index, kv_carry carry) {
    carry.start_ns = 1;
    carry.issue_ns = 2;
    carry.bytes = 0;
    carry.flags = 0;
    REQUIRE(bpf_map_update_elem(carries_.get(), &index, &carry, BPF_ANY) == 0);
  }

  void put_into_overflow(kv_carry carry) {
    carry.start_ns = 1;
    carry.issue_ns = 2;
    carry.bytes = 0;
    const core::UniqueFd map = map_named("carry_overflow");
    REQUIRE(bpf_map_update_elem(map.get(), &carry.rq, &carry, BPF_NOEXIST) == 0);
    __atomic_fetch_add(&globals().overflow_live, 1, __ATOMIC_SEQ_CST);
  }

  void put_bio(__u64 address, const kv_bio& bio) {
    const core::UniqueFd map = map_named("bios");
    REQUIRE(bpf_map_update_elem(map.get(), &address, &bio, BPF_NOEXIST) == 0);
    __atomic_fetch_add(&globals().bios_live, 1, __ATOMIC_SEQ_CST);
  }

 private:
  core::SlotIdentity identity_;
  core::UniqueFd carries_;
  core::UniqueFd bss_map_;
  MapView bss_view_;
};

struct Disk {
  Disk() { write_file(dir / "image", 16U << 20U); }
  ~Disk() {
    if (device) merge(true);
  }
  TempDir dir;
  std::optional<LoopDevice> device;
  const std::string& path() {
    if (!device) {
      device.emplace(dir / "image");
      merge(false);
    }
    return device->path();
  }
  /// The device outlives its file: as it was, for the next one.
  void merge(bool may) const {
    const std::string name = device->path().substr(device->path().rfind('/'));
    std::ofstream("/sys/block" + name + "/queue/nomerges") << (may ? 0 : 2) << std::flush;
  }
};

Arguments read_blocks(const std::string& program, const std::string& disk, int count) {
  return {program, "if=" + disk, "of=/dev/null", "bs=4k", "count=" + std::to_string(count), "iflag=direct"};
}

core::CounterValue reads(const SlotMaps& maps) {
  return totals(maps, 0).operations[KV_READ];
}

TEST_CASE("what ended unseen counts once, at the next reading") {
  Rig rig;
  Disk disk;
  const SlotMaps maps = rig.spare(1);
  run(read_blocks(rig.qemu("dd"), disk.path(), 8));
  rig.tracer().settle();
  REQUIRE(reads(maps) == core::CounterValue{8, 8 * 4096});
  const std::uint64_t stale = rig.stat("stale");
  Remembered remembered(maps);
  const auto ended = remembered.ended();
  REQUIRE(!ended.empty());
  const auto& [index, carry] = ended.front();

  remembered.put_back(index, carry);
  REQUIRE(rig.tracer().in_flight(maps.identity()) == 1);
  rig.tracer().settle();
  REQUIRE(rig.tracer().in_flight(maps.identity()) == 0);
  REQUIRE(reads(maps) == core::CounterValue{9, 9 * 4096});

  remembered.put_into_overflow(carry);
  REQUIRE(rig.tracer().in_flight(maps.identity()) == 1);
  rig.tracer().settle();
  REQUIRE(rig.tracer().in_flight(maps.identity()) == 0);
  REQUIRE(reads(maps) == core::CounterValue{10, 10 * 4096});

  // Merged into a request that has ended: one whose operation its carry counted, and one of its own.
  kv_bio bio{.start_ns = 1, .rq = carry.rq, .id = carry.id, .sector = 8, .length = 4096, .op = KV_READ};
  bio.flags = KV_BIO_PART;
  remembered.put_bio(0x1000, bio);
  bio.flags = 0;
  remembered.put_bio(0x2000, bio);
  REQUIRE(rig.tracer().in_flight(maps.identity()) == 2);
  rig.tracer().settle();
  REQUIRE(rig.tracer().in_flight(maps.identity()) == 0);
  REQUIRE(reads(maps) == core::CounterValue{11, 12 * 4096});

  rig.tracer().settle();
  REQUIRE(reads(maps) == core::CounterValue{11, 12 * 4096});
  REQUIRE(rig.stat("stale") == stale + 4);
  REQUIRE(remembered.globals().bios_live == 0);
}

TEST_CASE("a tag whose last use ended unseen lends nothing to the stranger who has it next") {
  const bool partial = GENERATE(false, true);
  const bool own = GENERATE(false, true);
  CAPTURE(partial, own);
  Rig rig;
  Disk disk;
  const SlotMaps maps = rig.spare(1);
  run({rig.qemu("fio"), "--name=j", "--filename=" + disk.path(), "--direct=1", "--bs=4k", "--rw=read",
       "--size=4M", "--ioengine=libaio", "--iodepth=128"});
  rig.tracer().settle();
  const core::CounterValue before = reads(maps);
  REQUIRE(before == core::CounterValue{1024, 4U << 20U});
  Remembered remembered(maps);
  const auto ended = remembered.ended();
  for (auto [index, carry] : ended) {
    remembered.put_back(index, carry);
    if (!partial) continue;
    carry.start_ns = 1;
    carry.issue_ns = 2;
    carry.flags = KV_CARRY_PARTIAL;
    carry.bytes = 0;
    carry.length = 2048;
    const core::UniqueFd carries = map_named("carries");
    REQUIRE(bpf_map_update_elem(carries.get(), &index, &carry, BPF_ANY) == 0);
  }
  // The stranger, or the VM itself, goes through all the tags.
  const std::string next = own ? rig.qemu("fio") : "fio";
  SlotMaps other = rig.spare(2);
  run({next, "--name=j", "--filename=" + disk.path(), "--direct=1", "--bs=8k", "--rw=randread", "--size=8M",
       "--ioengine=libaio", "--iodepth=128"});
  rig.tracer().settle();
  const std::uint64_t bytes = partial ? 2048 : 4096;
  REQUIRE(reads(maps) == core::CounterValue{before.count + ended.size(), before.sum + ended.size() * bytes});
  REQUIRE(reads(other) == (own ? core::CounterValue{1024, 8U << 20U} : core::CounterValue{}));
}

TEST_CASE("a bio of a device without requests that ended unseen hides nobody else's") {
  Rig rig;
  Disk disk;
  const SlotMaps maps = rig.spare(1);
  const auto deep = [&] {
    return Arguments{rig.qemu("fio"), "--name=j",  "--filename=" + disk.path(), "--direct=1",   "--bs=4k",
                     "--rw=randread", "--size=8M", "--ioengine=libaio",         "--iodepth=128"};
  };
  run(deep());
  rig.tracer().settle();
  const core::CounterValue before = reads(maps);
  Remembered remembered(maps);
  // At the addresses of bios that this device's requests had, and will have again.
  std::set<__u64> addresses;
  for (const auto& [index, carry] : remembered.ended()) {
    if (!addresses.insert(carry.bio).second) continue;
    remembered.put_bio(carry.bio, {.start_ns = 1,
                                   .rq = 0,
                                   .id = carry.id,
                                   .sector = 0,
                                   .length = 1U << 20U,
                                   .dev = carry.dev,
                                   .op = KV_WRITE,
                                   .flags = KV_BIO_DEVICE});
  }
  const auto left = static_cast<std::int64_t>(addresses.size());
  REQUIRE(left > 0);
  for (std::uint32_t slot = 2; slot < 30 && remembered.globals().bios_live == left; ++slot) {
    const SlotMaps other = rig.spare(slot);
    run(deep());
    rig.tracer().settle();
    REQUIRE(reads(other) == before);
  }
  // Those whose addresses were used again have been counted meanwhile, as what they were.
  REQUIRE(remembered.globals().bios_live < left);
  REQUIRE(reads(maps) == before);
}

}  // namespace
}  // namespace kvmscope::bpf::test
