// SPDX-License-Identifier: Apache-2.0
#include "hostd/vm_series.h"

#include "bpf/abi.h"

#include <algorithm>
#include <map>
#include <stdexcept>

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

core::Disk block_disk(const std::string& target, std::uint32_t minor) {
  return {.target = target,
          .alias = "virtio-disk-" + target,
          .source = "/dev/x",
          .backing = core::DiskBacking::block_device,
          .device_major = 8,
          .device_minor = minor,
          .inode = 0,
          .invisible_reason = {}};
}

core::Disk file_disk(const std::string& target, std::uint32_t minor, std::uint64_t inode) {
  core::Disk disk = block_disk(target, minor);
  disk.backing = core::DiskBacking::file;
  disk.inode = inode;
  return disk;
}

const DeviceLabel* find(const std::vector<DeviceLabel>& labels, const std::string& name) {
  const auto found = std::ranges::find(labels, name, &DeviceLabel::name);
  return found == labels.end() ? nullptr : &*found;
}

std::vector<DeviceLabel> label(const core::VmFacts* facts, const std::vector<bpf::DiskKey>& keys) {
  std::vector<bpf::NumberedDisk> devices;
  for (const bpf::DiskKey key : keys) devices.push_back({.key = key});
  DeviceNames names;
  return label_disks(facts, devices, false, names);
}

using Devs = std::vector<std::uint16_t>;

TEST_CASE("two files on one file system are two disks; what names neither is unresolved") {
  core::VmFacts facts;
  facts.disks = {file_disk("vda", 1, 100), file_disk("vdb", 1, 200)};
  const std::vector<bpf::DiskKey> keys = {bpf::disk_key(8, 1, 200), bpf::disk_key(8, 1, 0),
                                          bpf::disk_key(8, 1, 100)};
  const auto labels = label(&facts, keys);
  REQUIRE(find(labels, "vda")->devs == Devs{2});
  REQUIRE(find(labels, "vdb")->devs == Devs{0});
  REQUIRE(find(labels, "unresolved")->devs == Devs{1});
  REQUIRE_FALSE(find(labels, "unresolved")->of_domain);
  REQUIRE(find(labels, "vda")->of_domain);
}

TEST_CASE("a device below a stacked one, or of no disk of the domain, has no label") {
  core::VmFacts facts;
  facts.disks = {block_disk("vda", 16)};
  const std::vector<bpf::DiskKey> keys = {bpf::disk_key(8, 0, 0), bpf::disk_key(8, 16, 0),
                                          bpf::disk_key(8, 1, 77)};
  const auto labels = label(&facts, keys);
  REQUIRE(find(labels, "vda")->devs == Devs{1});
  REQUIRE(find(labels, "unresolved") == nullptr);
  REQUIRE(labels.size() == 2);  // and "other"
  REQUIRE(find(labels, "other")->devs == Devs{kOtherDevice});
}

TEST_CASE("all images of a disk are the disk; who left the domain keeps his name") {
  core::VmFacts facts;
  facts.disks = {file_disk("vda", 1, 100), block_disk("vdb", 16)};
  facts.disks[0].more_images = {{core::DiskBacking::file, 8, 1, 90},
                                {core::DiskBacking::block_device, 8, 48, 0}};
  std::vector<bpf::NumberedDisk> devices;
  for (const bpf::DiskKey key : {bpf::disk_key(8, 1, 90), bpf::disk_key(8, 16, 0), bpf::disk_key(8, 1, 100),
                                 bpf::disk_key(8, 48, 0), bpf::disk_key(8, 1, 0)}) {
    devices.push_back({.key = key});
  }
  DeviceNames names;
  auto labels = label_disks(&facts, devices, false, names);
  REQUIRE(find(labels, "vda")->devs == Devs{0, 2, 3});
  REQUIRE(find(labels, "vdb")->devs == Devs{1});

  // A snapshot: vda writes to a new file; vdb is unplugged and another file comes as vdb.
  facts.disks[0] = file_disk("vda", 1, 110);
  facts.disks[1] = file_disk("vdb", 1, 120);
  devices.push_back({.key = bpf::disk_key(8, 1, 120)});
  devices.push_back({.key = bpf::disk_key(8, 1, 110)});
  labels = label_disks(&facts, devices, false, names);
  REQUIRE(find(labels, "vda")->devs == Devs{0, 2, 3, 6});
  REQUIRE(find(labels, "vdb")->devs == Devs{1, 5});
  REQUIRE(find(labels, "unresolved")->devs == Devs{4});

  // The last file on that file system goes: what counted there does not.
  facts.disks.clear();
  labels = label_disks(&facts, devices, false, names);
  REQUIRE(find(labels, "vda")->devs == Devs{0, 2, 3, 6});
  REQUIRE(find(labels, "vda")->of_domain);
  REQUIRE(find(labels, "vdb")->devs == Devs{1, 5});
  REQUIRE(find(labels, "unresolved")->devs == Devs{4});
}

TEST_CASE("an image that nobody named in time is unresolved at the end") {
  core::VmFacts facts;
  facts.disks = {file_disk("vda", 1, 100)};
  const std::vector<bpf::NumberedDisk> devices = {
      {bpf::disk_key(8, 1, 100), true}, {bpf::disk_key(8, 1, 101), true}, {bpf::disk_key(8, 32, 0), false}};
  DeviceNames names;
  REQUIRE(find(label_disks(&facts, devices, false, names), "unresolved") == nullptr);
  REQUIRE(find(label_disks(&facts, devices, true, names), "unresolved")->devs == Devs{1});
}

TEST_CASE("an invisible disk gets no series, not zero ones") {
  core::VmFacts facts;
  facts.disks = {{.target = "vda", .invisible_reason = "network storage"}};
  REQUIRE(find(label(&facts, {}), "vda") == nullptr);
}

TEST_CASE(
    "NICs are called by their alias, one without a tap has no series; who was unplugged keeps his name") {
  core::VmFacts facts;
  facts.nics = {{.mac = "52:54:00:00:00:01", .alias = "net0", .netns = 1, .ifindex = 7},
                {.mac = "52:54:00:00:00:02", .alias = "hostdev0", .invisible_reason = "no tap"}};
  std::vector<bpf::NicKey> nics = {bpf::nic_key(1, 7), bpf::nic_key(1, 9)};
  NicNames names;
  auto labels = label_nics(&facts, nics, 0, false, names);
  REQUIRE(find(labels, "net0")->devs == Devs{0});
  REQUIRE(find(labels, "net0")->mac == "52:54:00:00:00:01");
  REQUIRE(find(labels, "net0")->of_domain);
  REQUIRE(find(labels, "hostdev0") == nullptr);
  REQUIRE(find(labels, "unresolved") == nullptr);
  REQUIRE(find(labels, "other")->devs == Devs{kOtherDevice});

  facts.nics = {{.mac = "52:54:00:00:00:03", .alias = "net1", .netns = 1, .ifindex = 9}};
  labels = label_nics(&facts, nics, 0, false, names);
  REQUIRE(find(labels, "net0")->devs == Devs{0});
  REQUIRE(find(labels, "net1")->devs == Devs{1});

  nics.push_back(bpf::nic_key(1, 11));
  NicNames last = names;
  REQUIRE(find(label_nics(&facts, nics, 0, true, last), "unresolved")->devs == Devs{2});
  NicNames none;
  REQUIRE(find(label_nics(nullptr, nics, 0, false, none), "unresolved")->devs == Devs{0, 1, 2});

  // A tap that libvirt names soon is called so from the first; later it stays what it was called.
  REQUIRE(find(label_nics(&facts, nics, 5, false, names), "unresolved") == nullptr);
  REQUIRE(find(label_nics(&facts, nics, 4 + kNicNamedWithinNs, false, names), "unresolved") == nullptr);
  REQUIRE(find(label_nics(&facts, nics, 5 + kNicNamedWithinNs, false, names), "unresolved")->devs == Devs{2});
  facts.nics.push_back({.mac = "52:54:00:00:00:04", .alias = "net2", .netns = 1, .ifindex = 11});
  labels = label_nics(&facts, nics, 6 + kNicNamedWithinNs, false, names);
  REQUIRE(find(labels, "unresolved")->devs == Devs{2});
  REQUIRE(find(labels, "net2") == nullptr);
}

TEST_CASE("a NIC that gets the alias of one that was unplugged is another series") {
  core::VmFacts facts;
  facts.nics = {{.mac = "a", .alias = "net1", .netns = 1, .ifindex = 7}};
  std::vector<bpf::NicKey> nics = {bpf::nic_key(1, 7)};
  NicNames names;
  label_nics(&facts, nics, 0, false, names);
  facts.nics = {{.mac = "b", .alias = "net1", .netns = 1, .ifindex = 9}};
  nics.push_back(bpf::nic_key(1, 9));
  const auto labels = label_nics(&facts, nics, 0, false, names);
  const auto devs_of = [&](const char* mac) {
    return std::ranges::find(labels, mac, &DeviceLabel::mac)->devs;
  };
  REQUIRE(devs_of("a") == Devs{0});
  REQUIRE(devs_of("b") == Devs{1});
  REQUIRE(labels.size() == 3);
}

TEST_CASE("a NIC beyond those that are numbered apart has no series of its own") {
  core::VmFacts facts;
  facts.nics = {{.mac = "z", .alias = "net99", .netns = 1, .ifindex = 99}};
  std::vector<bpf::NicKey> nics;
  for (std::uint32_t n = 1; n <= KV_MAX_NICS; ++n) nics.push_back(bpf::nic_key(1, n));
  NicNames names;
  REQUIRE(find(label_nics(&facts, nics, 0, false, names), "net99") == nullptr);
  nics.pop_back();
  REQUIRE(find(label_nics(&facts, nics, 0, false, names), "net99") != nullptr);
}

std::uint64_t writes(const tenancy::EpochTotals& totals, std::uint16_t dev) {
  return totals.total({KV_GUEST_DISK, dev, KV_WRITE}, {}).count;
}

virt::GuestDisk guest_disk(const char* target, std::uint64_t writes, std::uint64_t reads = 0) {
  return {
      .target = target, .read = {reads, reads * 512, reads}, .write = {writes, writes * 512, writes * 10}};
}

virt::BlockReading at(std::uint64_t asked_unix_ns, std::vector<virt::GuestDisk> disks) {
  return {.asked_unix_ns = asked_unix_ns, .disks = std::move(disks)};
}

TEST_CASE("the guest's operations: all that QEMU did, or from the first reading on") {
  for (const bool from_zero : {true, false}) {
    tenancy::EpochTotals totals;
    GuestDisks disks;
    REQUIRE(disks.unobserved_ns(1'000, 1'500) == 500);
    disks.read(at(1'100, {guest_disk("vda", 100)}), from_zero, 1'000, totals);
    const std::uint64_t begin = from_zero ? 100 : 0;
    REQUIRE(writes(totals, 0) == begin);
    REQUIRE(disks.unobserved_ns(1'000, 1'130) == (from_zero ? 30 : 130));
    disks.read(at(1'200, {guest_disk("vda", 130)}), from_zero, 1'000, totals);
    disks.read(at(1'300, {guest_disk("vda", 150), guest_disk("vdb", 7)}), from_zero, 1'000, totals);
    REQUIRE(writes(totals, 0) == begin + 50);
    REQUIRE(writes(totals, 1) == 7);  // plugged in since
    REQUIRE(disks.unobserved_ns(1'000, 1'340) == (from_zero ? 40 : 140));
    REQUIRE(totals.total({KV_GUEST_DISK, 1, KV_WRITE}, {}).sum == 7 * 512);
    REQUIRE(totals.total({KV_GUEST_DISK_TIME, 1, KV_WRITE}, {}).count == 70);
    REQUIRE(totals.total({KV_GUEST_DISK, 1, KV_READ}, {}).count == 0);
    REQUIRE(find(disks.labels(), "vdb")->devs == Devs{1});
  }
}

TEST_CASE("a disk that takes another's place adds all that it did, whatever that was") {
  tenancy::EpochTotals totals;
  GuestDisks disks;
  disks.read(at(1, {guest_disk("vda", 1), guest_disk("vdb", 100, 50)}), true, 0, totals);
  disks.read(at(2, {guest_disk("vda", 1)}), true, 0, totals);
  disks.read(at(3, {guest_disk("vda", 1), guest_disk("vdb", 5'000, 60)}), true, 0, totals);
  REQUIRE(writes(totals, 1) == 5'100);
  REQUIRE(totals.total({KV_GUEST_DISK, 1, KV_READ}, {}).count == 110);
  // Between two readings: fewer reads say that its writes are another's, too.
  disks.read(at(4, {guest_disk("vda", 1), guest_disk("vdb", 6'000, 3)}), true, 0, totals);
  REQUIRE(writes(totals, 1) == 11'100);
  REQUIRE(totals.total({KV_GUEST_DISK, 1, KV_READ}, {}).count == 113);
}

TEST_CASE("without facts all that was counted is unresolved, in one series") {
  const std::vector<bpf::DiskKey> keys = {bpf::disk_key(8, 1, 1), bpf::disk_key(8, 1, 2)};
  const auto labels = label(nullptr, keys);
  REQUIRE(find(labels, "unresolved")->devs == Devs{0, 1});
}

const bpf::Kind& kind_named(std::string_view name) {
  for (const bpf::Kind& kind : bpf::catalogue()) {
    if (kind.count != nullptr && kind.count->name == name) return kind;
  }
  throw std::runtime_error("no such kind");
}

TEST_CASE(
    "a drained epoch is read from its totals: devices of one label add up, disks exist from the start") {
  const bpf::Kind& operations = kind_named("kvmscope.vm.disk.storage.operations");
  const bpf::Kind& duration = kind_named("kvmscope.vm.disk.storage.duration");
  tenancy::EpochTotals totals;
  totals.fold({operations.id, 0, 0}, core::CounterValue{3, 4096});
  totals.fold({operations.id, 1, 0}, core::CounterValue{4, 512});
  core::HistogramValue histogram;
  histogram.buckets[10] = 7;
  histogram.sum_ns = 700;
  totals.fold({duration.id, 1, 0}, histogram);

  core::VmFacts facts;
  facts.disks = {block_disk("vda", 16)};
  const std::vector<bpf::DiskKey> keys = {bpf::disk_key(8, 16, 0), bpf::disk_key(8, 16, 0)};
  const auto labels = label(&facts, keys);
  VmReading reading;
  reading.read(nullptr, totals, labels);

  std::vector<core::Point> points;
  reading.points(5, 9, points);
  std::map<std::string, std::int64_t> numbers;
  const core::HistogramValue* read_duration = nullptr;
  for (const core::Point& point : points) {
    REQUIRE(point.start_unix_ns == 5);
    REQUIRE(point.time_unix_ns == 9);
    std::string id(point.instrument->name);
    for (const auto& label : point.labels) id += "|" + std::string(label.value);
    if (const auto* number = std::get_if<std::int64_t>(&point.value)) numbers[id] = *number;
    if (id == "kvmscope.vm.disk.storage.duration|vda|read") {
      read_duration = std::get<const core::HistogramValue*>(point.value);
    }
  }
  REQUIRE(numbers.at("kvmscope.vm.disk.storage.operations|vda|read") == 7);
  REQUIRE(numbers.at("kvmscope.vm.disk.storage.io|vda|read") == 4608);
  REQUIRE(numbers.at("kvmscope.vm.disk.storage.operations|vda|write") == 0);
  REQUIRE_FALSE(numbers.contains("kvmscope.vm.disk.storage.operations|vda|discard"));
  REQUIRE(read_duration != nullptr);
  REQUIRE(*read_duration == histogram);

  SECTION("points of one instrument are adjacent, as the encoder needs them") {
    std::vector<const core::Instrument*> order;
    for (const core::Point& point : points) {
      if (order.empty() || order.back() != point.instrument) order.push_back(point.instrument);
    }
    std::ranges::sort(order);
    REQUIRE(std::ranges::adjacent_find(order) == order.end());
  }
  SECTION("its end closes exactly the same series") {
    std::vector<core::Point> ends;
    reading.end_points(5, 10, ends);
    REQUIRE(ends.size() == points.size());
    REQUIRE(std::ranges::all_of(ends, &core::Point::no_recorded_value));
  }
}

TEST_CASE("vCPUs are called by their numbers; those plugged in exist from the start") {
  core::VmFacts facts;
  facts.vcpus = 2;
  facts.max_vcpus = 4;
  auto labels = label_vcpus(&facts, 5);
  REQUIRE(labels.size() == 5);
  REQUIRE(find(labels, "1")->of_domain);
  REQUIRE(find(labels, "3")->devs == Devs{3});
  REQUIRE_FALSE(find(labels, "3")->of_domain);
  REQUIRE(find(labels, "other")->devs == Devs{kOtherDevice});
  labels = label_vcpus(nullptr, 3);  // nobody has named it: what the maps have rows for
  REQUIRE(labels.size() == 3);
  REQUIRE_FALSE(find(labels, "0")->of_domain);
}

TEST_CASE("CPU time is exported in seconds, of all threads under one name") {
  tenancy::EpochTotals totals;
  const bpf::Kind& vcpu = kind_named("kvmscope.vm.cpu.time");
  const auto threads = std::ranges::find_if(bpf::catalogue(), [&](const bpf::Kind& kind) {
    return kind.count == vcpu.count && kind.dev_space == bpf::DevSpace::vm;
  });
  REQUIRE(threads != bpf::catalogue().end());
  totals.fold({vcpu.id, 1, 0}, core::CounterValue{1'500'000'000, 7});
  totals.fold({threads->id, 0, 2}, core::CounterValue{250'000'000, 500'000'000});
  core::VmFacts facts;
  facts.vcpus = facts.max_vcpus = 2;
  auto labels = label_vcpus(&facts, 3);
  labels.push_back(vm_label());
  VmReading reading;
  reading.read(nullptr, totals, labels);
  std::vector<core::Point> points;
  reading.points(5, 9, points);
  std::map<std::string, double> seconds;
  std::string last;
  std::vector<std::string> order;
  for (const core::Point& point : points) {
    std::string id(point.instrument->name);
    if (id != last) order.push_back(id);
    last = id;
    for (const auto& label : point.labels) id += "|" + std::string(label.value);
    if (const auto* number = std::get_if<double>(&point.value)) seconds[id] = *number;
  }
  REQUIRE(seconds.at("kvmscope.vm.cpu.time|1|vcpu") == 1.5);
  REQUIRE(seconds.at("kvmscope.vm.cpu.time|0|vcpu") == 0);
  REQUIRE(seconds.at("kvmscope.vm.cpu.time|emulator") == 0.25);
  REQUIRE(seconds.at("kvmscope.vm.cpu.steal.time|emulator") == 0.5);
  REQUIRE(std::ranges::count(order, "kvmscope.vm.cpu.time") == 1);
  REQUIRE(std::ranges::count(order, "kvmscope.vm.cpu.steal.time") == 1);
}

TEST_CASE("steal is the wait for a CPU that no quota is the reason of, and never falls") {
  const virt::CpuThrottle before{.vm_ns = 100, .vcpu_ns = {50, 0}};
  const virt::CpuThrottle now{.vm_ns = 500, .vcpu_ns = {80, 10}};
  REQUIRE(throttled_ns(now, before, 0, 300, 400) == 30 + 300);
  REQUIRE(throttled_ns(now, std::nullopt, 1, 100, 400) == 10 + 125);
  REQUIRE(throttled_ns(now, std::nullopt, 7, 0, 0) == 0);
  REQUIRE(throttled_ns({}, before, 0, 1, 1) == 0);  // the cgroup has gone

  REQUIRE(steal_of(1000, 300, {}) == core::CounterValue{700, 300});
  REQUIRE(steal_of(1000, 900, {700, 300}) == core::CounterValue{700, 900});  // throttling was added first
  REQUIRE(steal_of(1800, 0, {700, 900}) == core::CounterValue{900, 900});
  REQUIRE(steal_of(10, 900, {}) == core::CounterValue{0, 900});
}

}  // namespace
}  // namespace kvmscope::hostd
