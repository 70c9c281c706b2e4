// SPDX-License-Identifier: Apache-2.0
// Cost of one cycle per series: read the values from maps spread in memory as the kernel's are, convert,
// encode, and build the requests of a tenant's stream and the operator's. Prints user time, resident memory,
// and how the cost per series grows with the number of VMs.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "exporters/otlp.h"

namespace {

using namespace kvmscope;
using core::HistogramValue;
using core::Instrument;
using core::InstrumentType;
using core::Point;

constexpr std::size_t kSeries = 40;  // half of them histograms
constexpr std::size_t kFilled = 15;
constexpr std::size_t kCellBytes = (2 + core::kHistogramBuckets) * sizeof(std::uint64_t);
constexpr std::size_t kMapBytes = (kSeries * kCellBytes + 4095) / 4096 * 4096;

constexpr std::array<Instrument, 4> kInstruments = {{
    {"kvmscope.vm.disk.storage.operations", "{operation}", "Block requests completed.",
     InstrumentType::counter},
    {"kvmscope.vm.disk.storage.io", "By", "Bytes of block requests completed.", InstrumentType::counter},
    {"kvmscope.vm.disk.storage.duration", "s", "From issue to completion.", InstrumentType::histogram},
    {"kvmscope.vm.disk.storage.queue.duration", "s", "From start to issue.", InstrumentType::histogram},
}};
constexpr std::array<std::string_view, 10> kDirections = {"read",  "write",  "flush",  "discard",  "other",
                                                          "read2", "write2", "flush2", "discard2", "other2"};

/// One VM's values on pages of their own.
class Map {
 public:
  Map()
      : cells_(static_cast<std::atomic<std::uint64_t>*>(
            ::mmap(nullptr, kMapBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    if (cells_ == MAP_FAILED) std::abort();
    for (std::size_t series = 0; series < kSeries; ++series) {
      cell(series)[0] = 123'456'789 + series;
      cell(series)[1] = 17;
      for (std::size_t i = 0; i < kFilled; ++i) cell(series)[2 + 30 + 2 * i] = 100 * i + 1;
    }
  }
  ~Map() { ::munmap(cells_, kMapBytes); }
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;

  std::int64_t counter(std::size_t series) const {
    return static_cast<std::int64_t>(cell(series)[0].load(std::memory_order_relaxed));
  }
  void histogram(std::size_t series, HistogramValue& out) const {
    const auto* from = cell(series);
    out.sum_ns = from[0].load(std::memory_order_relaxed);
    out.zero = from[1].load(std::memory_order_relaxed);
    for (std::size_t i = 0; i < core::kHistogramBuckets; ++i) {
      out.buckets[i] = from[2 + i].load(std::memory_order_relaxed);
    }
  }

 private:
  std::atomic<std::uint64_t>* cell(std::size_t series) const { return cells_ + series * kCellBytes / 8; }
  std::atomic<std::uint64_t>* cells_;
};

exporters::EncodedScope encode(const Map& map, std::vector<HistogramValue>& values,
                               std::vector<Point>& points) {
  for (std::size_t series = 0; series < kSeries; ++series) {
    Point& point = points[series];
    point.time_unix_ns += 1;
    if (point.instrument->type == InstrumentType::histogram) {
      map.histogram(series, values[series]);
      point.value = &values[series];
    } else {
      point.value = map.counter(series);
    }
  }
  return exporters::encode_metrics(points);
}

std::vector<Point> make_points() {
  std::vector<Point> points;
  for (std::size_t series = 0; series < kSeries; ++series) {
    const std::size_t per = kSeries / kInstruments.size();
    points.push_back({.instrument = &kInstruments[series / per],
                      .labels = {{"disk.io.direction", kDirections[series % per]}, {"disk.device", "vda"}},
                      .start_unix_ns = 1'700'000'000'000'000'000,
                      .time_unix_ns = 1'700'000'010'000'000'000,
                      .value = std::int64_t{0}});
  }
  return points;
}

core::Resource resource_of(std::size_t vm) {
  return {{{"cloud.provider", std::string("openstack")},
           {"cloud.account.id", std::string("0123456789abcdef0123456789abcdef")},
           {"vm.id", "00000000-0000-0000-0000-" + std::to_string(100'000'000'000 + vm)},
           {"vm.name", "instance-" + std::to_string(vm)},
           {"service.instance.id", std::string("0123456789abcdef0123456789abcdef")}}};
}

double user_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec) + static_cast<double>(usage.ru_utime.tv_usec) * 1e-6;
}

double rss_mib() {
  std::ifstream statm("/proc/self/statm");
  std::size_t total = 0;
  std::size_t resident = 0;
  statm >> total >> resident;
  return static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / (1 << 20);
}

struct Cycle {
  std::size_t bytes = 0;
  double rss_mib = 0;
};

/// VMs of ten tenants: every scope goes to its tenant's stream and to the operator's.
Cycle cycle(const std::vector<std::unique_ptr<Map>>& maps, std::vector<HistogramValue>& values,
            std::vector<Point>& points) {
  constexpr std::size_t kMaxRequest = 3'500'000;
  std::vector<exporters::Batch> tenants;
  for (std::size_t i = 0; i < 10; ++i) {
    tenants.emplace_back(core::TenantId{"tenant" + std::to_string(i)}, exporters::Signal::metrics);
  }
  exporters::Batch all(core::TenantId{"operator"}, exporters::Signal::metrics);
  for (std::size_t vm = 0; vm < maps.size(); ++vm) {
    const auto scope = encode(*maps[vm], values, points);
    const core::Resource resource = resource_of(vm);
    tenants[vm % tenants.size()].add(resource, scope, kSeries);
    all.add(resource, scope, kSeries);
  }
  Cycle out;
  for (const exporters::Batch& tenant : tenants) {
    for (const auto& request : tenant.requests(kMaxRequest)) out.bytes += request.bytes.size();
  }
  const auto requests = all.requests(kMaxRequest);
  for (const auto& request : requests) out.bytes += request.bytes.size();
  out.rss_mib = rss_mib();
  return out;
}

/// Microseconds of user time per series: the best of five runs of at least so much work.
double measure(std::size_t vms, Cycle& last) {
  std::vector<std::unique_ptr<Map>> maps(vms);
  for (auto& map : maps) map = std::make_unique<Map>();
  std::vector<HistogramValue> values(kSeries);
  std::vector<Point> points = make_points();
  last = cycle(maps, values, points);
  const std::size_t cycles = std::max<std::size_t>(10, 10'000 / vms);
  double best = 1e9;
  for (int run = 0; run < 5; ++run) {
    const double begin = user_seconds();
    for (std::size_t i = 0; i < cycles; ++i) last = cycle(maps, values, points);
    best = std::min(best, (user_seconds() - begin) * 1e6 / static_cast<double>(cycles * vms * kSeries));
  }
  return best;
}

}  // namespace

int main() {
  std::printf("%8s %8s %14s %14s %12s %10s %8s\n", "VMs", "series", "us per series", "ms per cycle",
              "bytes sent", "RSS MiB", "ratio");
  double first = 0;
  for (const std::size_t vms : {std::size_t{10}, std::size_t{100}, std::size_t{500}, std::size_t{1000}}) {
    Cycle last;
    const double us = measure(vms, last);
    if (first == 0) first = us;
    std::printf("%8zu %8zu %14.3f %14.2f %12zu %10.1f %8.2f\n", vms, vms * kSeries, us,
                us * static_cast<double>(vms * kSeries) * 1e-3, last.bytes, last.rss_mib, us / first);
  }
  return 0;
}
