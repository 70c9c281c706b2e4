// SPDX-License-Identifier: Apache-2.0
// Packets at a tap: counted as the tap itself counts them, for whoever owns it, and nobody else.
#include "tests/bpf/rig.h"
#include "tests/bpf/tap.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf::test {
namespace {

core::CounterValue packets(const SlotMaps& maps, std::uint16_t direction, std::uint16_t dev = 0) {
  return maps.counter({.kind = KV_NIC_PACKETS, .dev = dev, .sub = direction});
}
std::uint64_t segments(const SlotMaps& maps, std::uint16_t direction) {
  return maps.counter({.kind = KV_NIC_SEGMENTS, .dev = 0, .sub = direction}).count;
}
std::uint64_t dropped(const SlotMaps& maps, std::uint16_t direction, std::uint16_t reason) {
  return maps
      .counter(
          {.kind = KV_NIC_DROPS, .dev = 0, .sub = static_cast<std::uint16_t>(direction * KV_DROPS + reason)})
      .count;
}
std::uint64_t handed(const SlotMaps& maps) {
  const core::CounterValue queue = maps.counter({.kind = KV_NIC_QUEUE, .dev = 0, .sub = 0});
  return queue.count - queue.sum;  // but for those that were refused
}

std::uint64_t dropped(const SlotMaps& maps, std::uint16_t direction) {
  std::uint64_t sum = 0;
  for (std::uint16_t reason = 0; reason < KV_DROPS; ++reason) sum += dropped(maps, direction, reason);
  return sum;
}

void require_as_the_tap_says(const SlotMaps& maps, const TapStats& tap) {
  REQUIRE(packets(maps, KV_TRANSMIT) == core::CounterValue{tap.rx_packets, tap.rx_bytes});
  REQUIRE(packets(maps, KV_RECEIVE) == core::CounterValue{tap.tx_packets, tap.tx_bytes});
}

TEST_CASE("a VM's packets are what its tap says, from the first one") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  Tap tap(rig, "t0");
  tap.act("send 5 60");
  tap.act("send 1 1514");
  tap.inject(3, 100);
  tap.inject(1, 700);
  tap.act("take 4");
  require_as_the_tap_says(maps, tap.stats());
  REQUIRE(packets(maps, KV_TRANSMIT) == core::CounterValue{6, 5 * 60 + 1514});
  REQUIRE(packets(maps, KV_RECEIVE) == core::CounterValue{4, 1000});
  REQUIRE(rig.tracer().nics(maps.identity()) == std::vector<NicKey>{tap.key()});
  REQUIRE(segments(maps, KV_TRANSMIT) == 6);
  REQUIRE(rig.stat("other_nic") == 0);
}

TEST_CASE("a packet that is still to be cut is one, and as many segments as it will be") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  Tap tap(rig, "t0");
  tap.act("gso 14480 1448");
  REQUIRE(segments(maps, KV_TRANSMIT) == 10);
  tap.act("gso 14481 1448");
  tap.act("gso 1449 1448");
  REQUIRE(segments(maps, KV_TRANSMIT) == 10 + 11 + 2);
  REQUIRE(packets(maps, KV_TRANSMIT) == core::CounterValue{3, 14480 + 14481 + 1449 + 3 * 54});
  require_as_the_tap_says(maps, tap.stats());
}

TEST_CASE("what the guest does not take waits in the tap's queue; what does not fit is dropped") {
  Rig rig;
  const SlotMaps maps = rig.spare(1, {.disks = 1, .vcpus = 1, .nics = 2});
  Tap tap(rig, "t0");
  const auto devs = rig.tracer().number_nics(maps.identity(), std::vector<NicKey>{tap.key()});
  REQUIRE((devs && *devs == std::vector<std::uint16_t>{0}));
  tap.inject(2'500, 100);
  const TapStats full = tap.stats();
  REQUIRE(full.tx_dropped > 0);
  REQUIRE(dropped(maps, KV_RECEIVE, KV_DROP_RING_FULL) == full.tx_dropped);
  const std::uint64_t waiting = 2'500 - full.tx_dropped - full.tx_packets;
  REQUIRE(handed(maps) - packets(maps, KV_RECEIVE).count == waiting);
  rig.spin(std::chrono::milliseconds(50));
  tap.act("take " + std::to_string(waiting));
  require_as_the_tap_says(maps, tap.stats());
  REQUIRE(handed(maps) == packets(maps, KV_RECEIVE).count);
  core::HistogramValue waits;
  maps.histogram({.kind = KV_NIC_QUEUE_DURATION, .dev = 0, .sub = 0}, waits);
  REQUIRE(waits.count() >= waiting / 8);
  REQUIRE(waits.count() <= waiting / 8 + 1);
  REQUIRE(waits.sum_ns > waits.count() * 50'000'000);
}

TEST_CASE("what a guest sends while its tap is down is dropped on its way from the guest") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  Tap tap(rig, "t0");
  tap.act("send 1 60");
  tap.act("down");
  for (int i = 0; i < 3; ++i) REQUIRE(tap.ask("send 1 60") == "failed");
  REQUIRE(dropped(maps, KV_TRANSMIT, KV_DROP_DOWN) == 3);
  REQUIRE(dropped(maps, KV_RECEIVE) == 0);
  REQUIRE(packets(maps, KV_TRANSMIT).count == 1);
}

TEST_CASE("what is in the queue of a tap that its VM closes is dropped on its way to the guest") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  Tap tap(rig, "t0");
  tap.act("send 1 60");
  tap.inject(4, 100);
  const std::uint64_t unwanted = dropped(maps, KV_TRANSMIT);  // by the host: a protocol of nobody's
  tap.act("close");
  REQUIRE(dropped(maps, KV_RECEIVE, KV_DROP_OTHER) == 4);
  REQUIRE(dropped(maps, KV_TRANSMIT) == unwanted);
}

TEST_CASE("copies for who listens in are no drops of the VM's") {
  Rig rig;
  const SlotMaps maps = rig.spare(1);
  Tap tap(rig, "t0");
  tap.act("send 1 60");
  tap.act("listen");  // and never reads
  tap.inject(300, 1'000);
  REQUIRE(tap.stats().tx_dropped == 0);
  REQUIRE(dropped(maps, KV_RECEIVE) == 0);
}

TEST_CASE("two VMs' taps, and one that is nobody's") {
  Rig rig;
  const SlotMaps one = rig.spare(1);
  Tap first(rig, "t0");
  first.act("send 1 60");
  const SlotMaps two = rig.spare(2);
  Tap second(rig, "t0");
  Tap stranger(rig, "t0", false);
  stranger.act("send 9 60");
  second.act("send 7 60");
  first.inject(2, 60);
  first.act("take 2");
  REQUIRE(packets(one, KV_TRANSMIT).count == 1);
  REQUIRE(packets(one, KV_RECEIVE).count == 2);
  REQUIRE(packets(two, KV_TRANSMIT).count == 7);
  REQUIRE(packets(two, KV_RECEIVE).count == 0);
}

TEST_CASE("a tap whose VM changes hands counts for the new owner from then on") {
  Rig rig;
  const SlotMaps first = rig.spare(1);
  Tap tap(rig, "t0");
  tap.act("send 3 60");
  rig.until([&] { return !rig.processes.empty(); });
  const SlotMaps second = rig.spare(2);
  REQUIRE(rig.tracer().rebind(rig.processes.front().process) == second.identity());
  tap.act("send 4 60");
  REQUIRE(rig.tracer().number_nics(second.identity(), std::vector<NicKey>{tap.key()}));
  tap.inject(2, 60);
  tap.act("take 2");
  REQUIRE(packets(first, KV_TRANSMIT).count == 3);
  REQUIRE(packets(first, KV_RECEIVE).count == 0);
  REQUIRE(packets(second, KV_TRANSMIT).count == 4);
  REQUIRE(packets(second, KV_RECEIVE).count == 2);
  REQUIRE(handed(second) == 2);
  REQUIRE(rig.retire(first.identity()));
  tap.inject(1, 60);
  REQUIRE(handed(second) == 3);
}

}  // namespace
}  // namespace kvmscope::bpf::test
