// SPDX-License-Identifier: Apache-2.0
#include "hostd/top_tracker.h"

#include <stdexcept>

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

}  // namespace
}  // namespace kvmscope::hostd
