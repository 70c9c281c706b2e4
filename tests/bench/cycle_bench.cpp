// SPDX-License-Identifier: Apache-2.0
// What a cycle costs per series: real inner maps, read in place, converted and encoded, for 10 to 1,000 VMs
// of 40 series. Needs root. Prints the process's CPU time per cycle and per series (medians), the ratio of
// the per-series cost to that of 10 VMs, and the daemon-side memory at 500 and at 1,000 VMs.
#include <bpf/bpf.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "bpf/tracer.h"
#include "exporters/otlp.h"
#include "hostd/core/unique_fd.h"
#include "hostd/vm_series.h"

namespace kvmscope {
namespace {

constexpr std::uint16_t kDisks =
    5;  // 5 disks x {read, write} x {operations, bytes, duration, queue} = 40 series
constexpr int kCycles = 25;

struct Vm {
  bpf::SlotMaps maps;
  tenancy::EpochTotals totals;
  std::vector<hostd::DeviceLabel> devices;
};

/// In user and kernel: the split between them is only sampled by the tick.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

double resident_mib() {
  std::ifstream file("/proc/self/statm");
  std::uint64_t size = 0;
  std::uint64_t resident = 0;
  file >> size >> resident;
  return static_cast<double>(resident * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE))) / (1 << 20);
}

/// Writes plausible load into every inner map of this process's newest maps: the kernel's own path is another
/// bench.
void fill_maps(std::uint32_t first_id) {
  std::mt19937_64 random(1);
  std::uint32_t id = first_id;
  while (bpf_map_get_next_id(id, &id) == 0) {
    const core::UniqueFd fd(bpf_map_get_fd_by_id(id));
    bpf_map_info info{};
    std::uint32_t length = sizeof(info);
    if (!fd || bpf_obj_get_info_by_fd(fd.get(), &info, &length) != 0) continue;
    const std::string name = info.name;
    if (info.type != BPF_MAP_TYPE_ARRAY || (info.value_size != 16 && info.value_size != 896)) continue;
    std::vector<std::uint64_t> cell(info.value_size / 8);
    const std::uint32_t header = info.value_size == 16 ? 8 : 1;
    for (std::uint32_t key = header; key < info.max_entries; ++key) {
      std::ranges::fill(cell, 0);
      cell[0] = random() % 1'000'000'000 + 1;
      if (info.value_size == 16) cell[1] = random() % (1ULL << 40) + 1;
      if (info.value_size == 896) {
        for (std::size_t bucket = 0; bucket < 15; ++bucket) cell[30 + bucket] = random() % 100'000 + 1;
      }
      bpf_map_update_elem(fd.get(), &key, cell.data(), BPF_ANY);
    }
  }
}

std::uint32_t last_map_id() {
  std::uint32_t last = 0;
  std::uint32_t id = 0;
  while (bpf_map_get_next_id(id, &id) == 0) last = id;
  return last;
}

/// Exactly the series of the figure: reads and writes, no errors, flushes or discards.
bool in_figure(const core::Point& point) {
  return std::ranges::any_of(point.labels,
                             [](const core::Point::Label& label) {
                               return label.key == "disk.io.direction" &&
                                      (label.value == "read" || label.value == "write");
                             }) &&
         std::ranges::none_of(point.labels,
                              [](const core::Point::Label& label) { return label.key == "error.type"; });
}

struct Cost {
  double ms_per_cycle = 0;
  double us_per_series = 0;
  double request_mib = 0;
};

Cost measure(const std::vector<Vm>& vms) {
  hostd::VmReading reading;
  std::vector<core::Point> points;
  std::size_t series = 0;
  std::size_t bytes = 0;
  std::vector<double> seconds;
  for (int cycle = 0; cycle < kCycles; ++cycle) {
    const double before = cpu_seconds();
    exporters::Batch batch({"tenant"}, exporters::Signal::metrics);
    series = 0;
    for (std::size_t i = 0; i < vms.size(); ++i) {
      const Vm& vm = vms[i];
      reading.read(&vm.maps, vm.totals, vm.devices);
      points.clear();
      reading.points(1, 2, points);
      std::erase_if(points, [](const core::Point& point) { return !in_figure(point); });
      series += points.size();
      const core::Resource resource{{{"vm.id", std::string("9cb7f6d0-2f0c-4b8e-8f7d-0123456789ab")},
                                     {"cloud.account.id", std::string("project")},
                                     {"service.instance.id", std::to_string(i)}}};
      batch.add(resource, exporters::encode_metrics(points), points.size());
    }
    bytes = 0;
    for (const auto& request : batch.requests(3'500'000)) bytes += request.bytes.size();
    seconds.push_back(cpu_seconds() - before);
  }
  std::ranges::sort(seconds);
  const double median = seconds[seconds.size() / 2];
  return {.ms_per_cycle = median * 1e3,
          .us_per_series = median * 1e6 / static_cast<double>(series),
          .request_mib = static_cast<double>(bytes) / (1 << 20)};
}

int run() {
  const std::uint32_t before_maps = last_map_id();
  boost::asio::io_context io;
  bpf::Tracer::Options options;
  options.executor = io.get_executor();
  options.max_slots = 2048;
  options.on_process = [](const bpf::ProcessEvent&) {};
  options.on_io_error = [](core::SlotIdentity, std::uint32_t, const bpf::IoErrorEvent&) {};
  auto tracer = bpf::Tracer::open(std::move(options));
  if (!tracer) {
    std::fprintf(stderr, "bench-cycle: %s\n", tracer.error().message().c_str());
    return 1;
  }
  std::vector<Vm> vms;
  const auto grow_to = [&](std::uint32_t count) {
    for (auto slot = static_cast<std::uint32_t>(vms.size() + 1); slot <= count; ++slot) {
      (*tracer)->install({{slot}, {slot + 1}}, {slot + 1}, {.disks = kDisks + 1, .vcpus = 5},
                         [&vms](core::Result<bpf::SlotMaps> maps) {
                           if (!maps) return;
                           std::vector<hostd::DeviceLabel> devices;
                           for (std::uint16_t dev = 0; dev < kDisks; ++dev) {
                             devices.push_back({.name = std::string("vd") + static_cast<char>('a' + dev),
                                                .devs = {dev},
                                                .of_domain = true});
                           }
                           vms.push_back({std::move(*maps), {}, std::move(devices)});
                         });
    }
    while (vms.size() < count) {
      io.restart();
      io.run_for(std::chrono::milliseconds(100));
    }
    fill_maps(before_maps);
  };
  std::printf(
      "cycle: read + convert + encode, 40 series a VM (half of them histograms with 15 filled buckets)\n");
  double reference = 0;
  for (const std::uint32_t count : {10U, 100U, 500U, 1000U}) {
    grow_to(count);
    const Cost cost = measure(vms);
    if (reference == 0) reference = cost.us_per_series;
    std::printf(
        "%5u VMs %6u series: %7.2f ms a cycle, %6.3f us a series (%.2f times that of 10 VMs), %5.2f MiB of "
        "requests, %5.1f MiB resident\n",
        count, count * 40, cost.ms_per_cycle, cost.us_per_series, cost.us_per_series / reference,
        cost.request_mib, resident_mib());
  }
  return 0;
}

}  // namespace
}  // namespace kvmscope

int main() {
  return kvmscope::run();
}
