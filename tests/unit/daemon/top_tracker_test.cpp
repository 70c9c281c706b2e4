// SPDX-License-Identifier: Apache-2.0
#include "hostd/top_tracker.h"

#include <algorithm>
#include <stdexcept>

#include "bpf/abi.h"
#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

const bpf::Kind& kind_named(std::string_view name) {
  for (const bpf::Kind& kind : bpf::catalogue()) {
    if (kind.count != nullptr && kind.count->name == name) return kind;
  }
  throw std::runtime_error("no such kind");
}

TEST_CASE("top shows the difference of two readings, not the totals") {
  const bpf::Kind& operations = kind_named("kvmscope.vm.disk.storage.operations");
  const bpf::Kind& duration = kind_named("kvmscope.vm.disk.storage.duration");
  const DeviceLabel disk{.name = "vda", .devs = {0}, .of_domain = true};
  tenancy::Epoch epoch;
  epoch.slot = {{7}, {9}};
  epoch.tenant = {"acme"};
  epoch.facts.emplace();
  epoch.facts->name = "web";

  core::HistogramValue histogram;
  histogram.buckets[20] = 1'000;  // the past: must not show
  std::vector<VmReading::Row> rows = {
      {.kind = &operations, .sub = 0, .device = &disk, .counter = {1'000, 4'096'000}, .histogram = nullptr},
      {.kind = &duration, .sub = 0, .device = &disk, .counter = {}, .histogram = &histogram}};
  TopTracker top;
  top.begin(1);
  top.observe(epoch, rows, 1'000'000'000);
  top.end();
  REQUIRE(top.view().rows.empty());

  core::HistogramValue later = histogram;
  later.buckets[60] = 100;
  rows[0].counter = {1'100, 4'096'000 + 409'600};
  rows[1].histogram = &later;
  top.begin(1);
  top.observe(epoch, rows, 3'000'000'000);
  top.end();
  REQUIRE(top.view().rows.size() == 1);
  const TopRow& row = top.view().rows.front();
  REQUIRE(row.vm == "web");
  REQUIRE(row.tenant == "acme");
  REQUIRE(row.disk == "vda");
  REQUIRE(row.direction == "read");
  REQUIRE(row.operations_per_s == Approx(50));
  REQUIRE(row.bytes_per_s == Approx(204'800));
  // Bucket 60 covers 2^-5 s to 2^-4.75 s.
  REQUIRE(row.p50_ns.has_value());
  REQUIRE(*row.p50_ns > 31'250'000);
  REQUIRE(*row.p50_ns <= 37'162'723);
  REQUIRE_FALSE(row.queue_p99_ns.has_value());
}

TEST_CASE("a thread's share of a CPU in the last interval, its steal and its waits") {
  const auto kind = [](std::string_view count, bpf::DevSpace space) -> const bpf::Kind& {
    return *std::ranges::find_if(bpf::catalogue(), [&](const bpf::Kind& one) {
      return one.count != nullptr && one.count->name == count && one.dev_space == space;
    });
  };
  const bpf::Kind& time = kind("kvmscope.vm.cpu.time", bpf::DevSpace::vcpu);
  const bpf::Kind& steal = kind("kvmscope.vm.cpu.steal.time", bpf::DevSpace::vcpu);
  const bpf::Kind& threads = kind("kvmscope.vm.cpu.time", bpf::DevSpace::vm);
  const bpf::Kind& waits = kind("kvmscope.vm.cpu.delay.duration", bpf::DevSpace::vcpu);
  const bpf::Kind& exits = kind("kvmscope.vm.cpu.exits", bpf::DevSpace::vcpu);
  const DeviceLabel vcpu{.space = bpf::DevSpace::vcpu, .name = "1", .devs = {1}, .of_domain = true};
  const DeviceLabel vm = vm_label();
  core::HistogramValue histogram;
  std::vector<VmReading::Row> rows = {
      {.kind = &time, .sub = 0, .device = &vcpu, .counter = {7'000'000'000, 0}, .histogram = nullptr},
      {.kind = &steal, .sub = 0, .device = &vcpu, .counter = {1'000'000, 2'000'000}, .histogram = nullptr},
      {.kind = &threads, .sub = 2, .device = &vm, .counter = {5, 6}, .histogram = nullptr},
      {.kind = &exits, .sub = KV_EXIT_HLT, .device = &vcpu, .counter = {100, 0}, .histogram = nullptr},
      {.kind = &exits, .sub = KV_EXIT_IO, .device = &vcpu, .counter = {1, 0}, .histogram = nullptr},
      {.kind = &waits, .sub = 0, .device = &vcpu, .counter = {}, .histogram = &histogram}};
  tenancy::Epoch epoch;
  TopTracker top;
  top.begin(1);
  top.observe(epoch, rows, 1'000'000'000);
  top.end();
  REQUIRE(top.view().cpus.empty());
  core::HistogramValue later;
  later.buckets[60] = 100;
  rows[0].counter.count += 1'500'000'000;
  rows[1].counter += {500'000'000, 200'000'000};
  rows[2].counter += {20'000'000, 40'000'000};
  rows[3].counter.count += 3000;
  rows[4].counter.count += 19;
  rows[5].histogram = &later;
  top.begin(2);
  top.observe(epoch, rows, 3'000'000'000);
  top.end();
  const auto& cpus = top.view().cpus;
  REQUIRE(cpus.size() == 2);
  REQUIRE(cpus[0].thread == "emulator");
  REQUIRE(cpus[0].cpu == Approx(0.01));
  REQUIRE(cpus[0].steal == Approx(0.02));
  REQUIRE_FALSE(cpus[0].delay_p99_ns);
  REQUIRE(cpus[1].thread == "vcpu 1");
  REQUIRE(cpus[1].cpu == Approx(0.75));
  REQUIRE(cpus[1].steal == Approx(0.25));
  REQUIRE(cpus[1].throttled == Approx(0.1));
  REQUIRE(cpus[1].exits_per_s == 1510);  // 1509.5, of all reasons
  REQUIRE_FALSE(cpus[0].exits_per_s);
  REQUIRE(*cpus[1].delay_p99_ns > 31'250'000);
}

TEST_CASE("what a NIC moved, dropped and holds") {
  const auto kind = [](std::uint16_t id) { return &bpf::catalogue()[id]; };
  const DeviceLabel net{.space = bpf::DevSpace::nic, .name = "net0", .devs = {0}};
  std::vector<VmReading::Row> rows = {
      {.kind = kind(KV_NIC_PACKETS),
       .sub = KV_RECEIVE,
       .device = &net,
       .counter = {5, 500},
       .histogram = nullptr},
      {.kind = kind(KV_NIC_PACKETS),
       .sub = KV_TRANSMIT,
       .device = &net,
       .counter = {7, 700},
       .histogram = nullptr},
      {.kind = kind(KV_NIC_DROPS), .sub = 0, .device = &net, .counter = {9, 0}, .histogram = nullptr},
      {.kind = kind(KV_NIC_DEPTH), .sub = 0, .device = &net, .counter = {3, 1}, .histogram = nullptr}};
  tenancy::Epoch epoch;
  TopTracker top;
  top.begin(1);
  top.observe(epoch, rows, 1'000'000'000);
  top.end();
  rows[0].counter += {20, 2'000};
  rows[1].counter += {10, 1'000};
  rows[2].counter.count += 2;
  rows[3].counter.count = 4;
  top.begin(2);
  top.observe(epoch, rows, 3'000'000'000);
  top.end();
  REQUIRE(top.view().nics.size() == 1);
  REQUIRE(top.view().cpus.empty());
  const NicRow& nic = top.view().nics[0];
  CHECK(nic.nic == "net0");
  CHECK(nic.received_per_s == Approx(10));
  CHECK(nic.received_bytes_per_s == Approx(1'000));
  CHECK(nic.sent_per_s == Approx(5));
  CHECK(nic.sent_bytes_per_s == Approx(500));
  CHECK(nic.dropped == 2);
  CHECK(nic.waiting == 4);
}

}  // namespace
}  // namespace kvmscope::hostd
