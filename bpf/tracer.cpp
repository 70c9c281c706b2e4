// SPDX-License-Identifier: Apache-2.0
#include "bpf/tracer.h"

#include <bpf/bpf.h>
#include <fcntl.h>

#include <algorithm>
#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include "bpf/abi.h"
#include "bpf/identities.h"
#include "bpf/loaded.h"
#include "bpf/process_files.h"
#include "bpf/rings.h"
#include "bpf/slot_maps.h"

namespace kvmscope::bpf {
namespace {

using core::Error;
using core::ErrorCode;
using core::fail;
using core::Result;
using core::SlotIdentity;

constexpr std::uint32_t kHostRingBytes = 1U << 20U;
constexpr core::Generation kHostGeneration{1};

struct StatText {
  std::string_view name;
  std::string_view description;
};
constexpr std::array<StatText, KV_STATS> kStats{{
    {"late", "Completions, packets, and sums of exits, of a tenancy of a slot that was over"},
    {"unattributed", "Requests and packets of a marked process that holds no slot; counted in the host's"},
    {"no_spare", "QEMU processes that found no spare slot"},
    {"carry_full", "Requests that could not be remembered and were not counted"},
    {"bio_full", "Merged or queued bios that could not be remembered and were not counted"},
    {"storage_failed", "Identities that could not be kept with their task"},
    {"not_a_disk", "Reads of a VM's process of its own files (binary, libraries)"},
    {"other_device", "Requests on a disk beyond the numbers of a slot"},
    {"stale",
     "Requests and merged bios whose completion the kernel did not show; counted without delays at the next "
     "reading, or when their tag or address was used again"},
    {"foreign_merged", "Bytes of other processes in a VM's merged requests, not counted as the VM's"},
    {"long_chain", "Merged requests with more parts than were looked at"},
    {"map_error", "Updates of a kernel table that failed"},
    {"late_time", "Nanoseconds of CPU time of a tenancy of a slot that was over"},
    {"other_nic", "Packets of a NIC beyond the numbers of a slot"},
}};

std::uint32_t load(const __u32& value) {
  return __atomic_load_n(&value, __ATOMIC_ACQUIRE);
}
void store(__u32& value, std::uint32_t to) {
  __atomic_store_n(&value, to, __ATOMIC_RELEASE);
}

Result<void> set_inner(int outer, std::uint32_t index, int inner_fd, std::string_view what) {
  if (bpf_map_update_elem(outer, &index, &inner_fd, BPF_ANY) == 0) return {};
  return fail(Error::from_errno("install " + std::string(what)));
}

Result<void> clear_inner(int outer, std::uint32_t index, std::string_view what) {
  if (bpf_map_delete_elem(outer, &index) == 0 || errno == ENOENT) return {};
  return fail(Error::from_errno("take out " + std::string(what)));
}

/// Each outer update waits until no program can have the old inner map any more.
Result<void> put_maps(const Loaded& loaded, std::uint32_t slot, int counters_fd, int histograms_fd) {
  // Histograms first: what fails halfway then lacks delays, never counts.
  if (auto done = set_inner(loaded.maps().histograms, slot, histograms_fd, "a slot's histograms"); !done)
    return done;
  return set_inner(loaded.maps().counters, slot, counters_fd, "a slot's counters");
}

SlotIdentity identity_of(kv_identity id) {
  return {.slot = {id.slot}, .generation = {id.generation}};
}

/// Of a hash by 64-bit keys. What comes or goes meanwhile may be missed, or seen twice.
template <typename Value, typename Predicate>
std::size_t count_values(int map, const Predicate& predicate) {
  std::size_t count = 0;
  __u64 key = 0;
  constexpr int kMost = 1 << 18;  // who restarts at a key that has gone meanwhile comes to an end, too
  const __u64* previous = nullptr;
  for (int steps = 0; steps < kMost && bpf_map_get_next_key(map, previous, &key) == 0; ++steps) {
    previous = &key;
    Value value{};
    if (bpf_map_lookup_elem(map, &key, &value) == 0 && predicate(value)) ++count;
  }
  return count;
}

/// The place of a key; the number of places if all are others'. The kernel claims free ones at the same time.
template <std::size_t Most>
std::uint16_t number_of(__u64 (&keys)[Most], std::uint64_t key) {
  std::uint16_t dev = 0;
  for (; dev < Most; ++dev) {
    __u64 there = 0;
    if (__atomic_compare_exchange_n(&keys[dev], &there, key, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST) ||
        there == key) {
      break;
    }
  }
  return dev;
}

template <typename Record>
const Record* record_as(std::span<const std::byte> bytes) {
  return bytes.size() >= sizeof(Record) ? reinterpret_cast<const Record*>(bytes.data()) : nullptr;
}

}  // namespace

struct Tracer::Impl {
  Impl(Options given, std::unique_ptr<Loaded> object)
      : options(std::move(given)), loaded(std::move(object)), identities(*loaded) {}
  ~Impl() { worker.join(); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  Options options;
  std::unique_ptr<Loaded> loaded;
  Identities identities;
  std::map<std::uint32_t, Ring> rings;
  std::map<std::uint32_t, std::uint64_t> drops_before;  ///< of the index's former tenants
  std::optional<SlotMaps> host_maps;                    ///< slot 0's
  core::UniqueFd run_stats;
  boost::asio::thread_pool worker{1};  ///< waits for RCU; last, so that it ends first

  bool valid(SlotIdentity identity) const {
    return identity.slot.value < options.max_slots && identity.generation.value != 0;
  }
  /// The slot's table, if this tenancy is in force.
  kv_slot_info* info_of(SlotIdentity identity) const {
    if (!valid(identity)) return nullptr;
    kv_slot_info& info = loaded->slot_info(identity.slot.value);
    return load(info.generation) == identity.generation.value ? &info : nullptr;
  }
  void begin_tenancy(SlotIdentity identity) const {
    kv_slot_info& info = loaded->slot_info(identity.slot.value);
    store(info.tenant, 0);
    store(info.listed, 0);
    store(info.files, 0);
    store(info.stacked, 0);
    store(info.dying, 0);
    for (__u64& key : info.disk_keys) __atomic_store_n(&key, 0, __ATOMIC_RELAXED);
    for (__u64& key : info.nic_keys) __atomic_store_n(&key, 0, __ATOMIC_RELAXED);
    store(info.generation, identity.generation.value);
  }

  /// Taps but for these that are still this tenancy's: another may have them since.
  void forget_nics(const kv_slot_info& info, SlotIdentity identity, std::span<const NicKey> but) const {
    const int map = loaded->maps().nics;
    for (const __u64& there : info.nic_keys) {
      const __u64 key = __atomic_load_n(&there, __ATOMIC_RELAXED);
      __u64 owner = 0;
      if (key != 0 && std::ranges::find(but, NicKey{key}) == but.end() &&
          bpf_map_lookup_elem(map, &key, &owner) == 0 && identity_of(kv_nic_identity(owner)) == identity) {
        bpf_map_delete_elem(map, &key);
      }
    }
  }

  void on_record(std::uint32_t tenant_index, std::span<const std::byte> bytes) const;
  Result<Ring> open_ring(std::uint32_t tenant_index, std::uint32_t bytes);
  template <typename Work, typename Done>
  void on_worker(Work work, Done done) {
    boost::asio::post(
        worker, [work = std::move(work), done = std::move(done), executor = options.executor]() mutable {
          boost::asio::post(executor,
                            [done = std::move(done), result = work()]() mutable { done(std::move(result)); });
        });
  }
};

void Tracer::Impl::on_record(std::uint32_t tenant_index, std::span<const std::byte> bytes) const {
  const auto* type = record_as<__u32>(bytes);
  if (type == nullptr) return;
  if (*type == KV_EVENT_IO_ERROR) {
    const auto* record = record_as<kv_event_io_error>(bytes);
    if (record == nullptr || !options.on_io_error) return;
    const IoErrorEvent event{.identity = identity_of(record->id),
                             .dev = record->dev,
                             .sub = record->sub,
                             .sector = record->sector,
                             .bytes = record->bytes,
                             .monotonic_ns = record->monotonic_ns};
    options.on_io_error(event.identity, tenant_index, event);
    return;
  }
  const auto* record = record_as<kv_event_process>(bytes);
  if (record == nullptr || !options.on_process) return;
  ProcessEvent event{.process = {.tgid = record->process.tgid, .start_ticks = record->process.start_ticks},
                     .identity = identity_of(record->id),
                     .comm = std::string(record->comm, ::strnlen(record->comm, sizeof(record->comm))),
                     .wait_status = static_cast<int>(record->status),
                     .monotonic_ns = record->monotonic_ns};
  if (*type == KV_EVENT_EXITED) event.type = ProcessEvent::Type::exited;
  if (*type == KV_EVENT_NO_SPARE) event.type = ProcessEvent::Type::no_spare_slot;
  options.on_process(event);
}

Result<Ring> Tracer::Impl::open_ring(std::uint32_t tenant_index, std::uint32_t bytes) {
  return Ring::open(options.executor, bytes, [this, tenant_index](std::span<const std::byte> record) {
    on_record(tenant_index, record);
  });
}

Tracer::Tracer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tracer::~Tracer() = default;

Result<std::unique_ptr<Tracer>> Tracer::open(Options options) {
  if (options.max_slots < 2 || options.max_tenants < 1) {
    return fail(ErrorCode::invalid_argument,
                "at least 2 slots and 1 tenant are needed: the first are the host's");
  }
  auto loaded = Loaded::load({.max_slots = options.max_slots,
                              .max_tenants = options.max_tenants,
                              .max_cgroups = options.max_cgroups,
                              .identity_hook = options.identity_hook,
                              .qemu_names = options.qemu_names});
  if (!loaded) return fail(loaded.error());
  auto impl = std::make_unique<Impl>(std::move(options), std::move(*loaded));
  const SlotIdentity host{.slot = core::kHostSlot, .generation = kHostGeneration};
  auto maps = SlotMaps::Impl::create(host, core::Incarnation{0}, SlotShape{});
  if (!maps) return fail(maps.error().wrap("the host's own slot"));
  impl->begin_tenancy(host);
  auto put = put_maps(*impl->loaded, 0, (*maps)->counters_fd.get(), (*maps)->histograms_fd.get());
  if (!put) return fail(put.error());
  impl->host_maps = SlotMaps(std::move(*maps));
  auto ring = impl->open_ring(0, kHostRingBytes);
  if (!ring) return fail(ring.error());
  if (auto set = set_inner(impl->loaded->maps().events, 0, ring->map_fd(), "the host's ring"); !set) {
    return fail(set.error());
  }
  impl->rings.emplace(0, std::move(*ring));
  if (auto attached = impl->loaded->attach(); !attached) return fail(attached.error());
  return std::unique_ptr<Tracer>(new Tracer(std::move(impl)));
}

// --- slots
// -------------------------------------------------------------------------------------------------------

void Tracer::install(SlotIdentity identity, core::Incarnation incarnation, SlotShape shape,
                     MapsCallback done) {
  impl_->on_worker(
      [impl = impl_.get(), identity, incarnation, shape]() -> Result<SlotMaps> {
        if (!impl->valid(identity) || identity.slot == core::kHostSlot) {
          return fail(ErrorCode::invalid_argument, "no such slot");
        }
        if (load(impl->loaded->slot_info(identity.slot.value).generation) != 0) {
          return fail(ErrorCode::already_exists, "the slot is in use");
        }
        auto maps = SlotMaps::Impl::create(identity, incarnation, shape);
        if (!maps) return fail(maps.error());
        auto put = put_maps(*impl->loaded, identity.slot.value, (*maps)->counters_fd.get(),
                            (*maps)->histograms_fd.get());
        if (!put) return fail(put.error());
        impl->begin_tenancy(identity);
        return SlotMaps(std::move(*maps));
      },
      std::move(done));
}

void Tracer::grow(SlotIdentity identity, core::Incarnation incarnation, SlotShape shape,
                  ReplaceCallback done) {
  impl_->on_worker(
      [impl = impl_.get(), identity, incarnation, shape]() -> Result<SlotMaps> {
        if (impl->info_of(identity) == nullptr) return fail(ErrorCode::not_found, "the slot is not in use");
        auto maps = SlotMaps::Impl::create(identity, incarnation, shape);
        if (!maps) return fail(maps.error());
        auto put = put_maps(*impl->loaded, identity.slot.value, (*maps)->counters_fd.get(),
                            (*maps)->histograms_fd.get());
        if (!put) return fail(put.error());
        return SlotMaps(std::move(*maps));
      },
      std::move(done));
}

void Tracer::retire(SlotIdentity identity, std::function<void(Result<void>)> done) {
  impl_->on_worker(
      [impl = impl_.get(), identity]() -> Result<void> {
        kv_slot_info* info = impl->info_of(identity);
        if (info == nullptr || identity.slot == core::kHostSlot) {
          return fail(ErrorCode::not_found, "the slot is not in use");
        }
        const std::uint32_t slot = identity.slot.value;
        const auto& maps = impl->loaded->maps();
        impl->forget_nics(*info, identity, {});
        if (auto out = clear_inner(maps.counters, slot, "a slot's counters"); !out) return out;
        if (auto out = clear_inner(maps.histograms, slot, "a slot's histograms"); !out) return out;
        store(info->generation, 0);
        return {};
      },
      std::move(done));
}

Result<void> Tracer::offer_spare(SlotIdentity identity) {
  if (impl_->info_of(identity) == nullptr) return fail(ErrorCode::not_found, "the slot is not installed");
  return impl_->identities.offer_spare(identity);
}

std::uint32_t Tracer::spares() const {
  return impl_->identities.spares();
}

const SlotMaps& Tracer::host_maps() const {
  return *impl_->host_maps;
}

// --- identity
// ----------------------------------------------------------------------------------------------------

Result<SlotIdentity> Tracer::claim(core::ProcessKey process) {
  return impl_->identities.claim(process);
}
Result<SlotIdentity> Tracer::rebind(core::ProcessKey process) {
  return impl_->identities.rebind(process);
}
Result<void> Tracer::bind(core::ProcessKey process, std::span<const std::uint64_t> cgroup_ids,
                          std::span<const core::ProcessKey> helpers) {
  return impl_->identities.bind(process, cgroup_ids, helpers);
}
void Tracer::unbind(core::ProcessKey process) {
  impl_->identities.unbind(process);
  impl_->loaded->count_threads();  // they forget whose they were
}
std::vector<std::pair<core::ProcessKey, SlotIdentity>> Tracer::processes() const {
  return impl_->identities.processes();
}

// --- disks of a slot
// ---------------------------------------------------------------------------------------------

Result<std::vector<std::uint16_t>> Tracer::number_disks(SlotIdentity identity,
                                                        std::span<const DiskKey> keys) {
  kv_slot_info* info = impl_->info_of(identity);
  if (info == nullptr) return fail(ErrorCode::not_found, "the slot is not in use");
  std::vector<std::uint16_t> numbers;
  for (const DiskKey key : keys) {
    const std::uint16_t dev = number_of(info->disk_keys, key.value);
    if (dev < KV_MAX_DISKS) __atomic_fetch_or(&info->listed, 1U << dev, __ATOMIC_SEQ_CST);
    numbers.push_back(dev);
  }
  return numbers;
}

std::vector<NumberedDisk> Tracer::disks(SlotIdentity identity) const {
  std::vector<NumberedDisk> disks;
  const kv_slot_info* info = impl_->info_of(identity);
  if (info == nullptr) return disks;
  const std::uint32_t files = load(info->files);
  const std::uint32_t stacked = load(info->stacked);
  for (const __u64& there : info->disk_keys) {
    const __u64 key = __atomic_load_n(&there, __ATOMIC_RELAXED);
    if (key == 0) break;
    const std::size_t dev = disks.size();
    disks.push_back({.key = DiskKey{key},
                     .direct_file = (files >> dev & 1U) != 0,
                     .stacked = (stacked >> dev & 1U) != 0});
  }
  return disks;
}

Result<void> Tracer::need_bio_devices() {
  return impl_->loaded->attach_bio_programs();
}

// --- NICs of a slot
// ----------------------------------------------------------------------------------------------

Result<std::vector<std::uint16_t>> Tracer::number_nics(SlotIdentity identity, std::span<const NicKey> keys) {
  kv_slot_info* info = impl_->info_of(identity);
  if (info == nullptr) return fail(ErrorCode::not_found, "the slot is not in use");
  std::vector<std::uint16_t> numbers;
  Result<void> remembered;
  impl_->forget_nics(*info, identity, keys);  // one that only traffic told is met again
  for (const NicKey key : keys) {
    const std::uint16_t dev = number_of(info->nic_keys, key.value);
    numbers.push_back(dev);
    if (dev == KV_MAX_NICS) continue;
    const __u64 owner =
        kv_nic_owner({.slot = identity.slot.value, .generation = identity.generation.value}, dev);
    if (bpf_map_update_elem(impl_->loaded->maps().nics, &key.value, &owner, BPF_ANY) != 0) {
      remembered = fail(Error::from_errno("remember a tap"));
      continue;
    }
    const auto ifindex = static_cast<std::uint32_t>(key.value);
    __atomic_fetch_or(&impl_->loaded->globals().nic_indexes[ifindex / 64 % (KV_NIC_BITS / 64)],
                      std::uint64_t{1} << ifindex % 64, __ATOMIC_SEQ_CST);
  }
  if (!remembered) return fail(remembered.error());
  return numbers;
}

std::vector<NicKey> Tracer::nics(SlotIdentity identity) const {
  std::vector<NicKey> nics;
  const kv_slot_info* info = impl_->info_of(identity);
  if (info == nullptr) return nics;
  for (const __u64& there : info->nic_keys) {
    const __u64 key = __atomic_load_n(&there, __ATOMIC_RELAXED);
    if (key == 0) break;
    nics.push_back(NicKey{key});
  }
  return nics;
}

// --- tenants
// -----------------------------------------------------------------------------------------------------

Result<void> Tracer::add_tenant(std::uint32_t tenant_index, std::uint32_t ring_bytes) {
  if (tenant_index == 0 || tenant_index >= impl_->options.max_tenants) {
    return fail(ErrorCode::invalid_argument, "no such tenant index");
  }
  if (impl_->rings.contains(tenant_index)) return fail(ErrorCode::already_exists, "the tenant has a ring");
  auto ring = impl_->open_ring(tenant_index, ring_bytes);
  if (!ring) return fail(ring.error());
  // Until the worker has installed it, the tenant's events count as drops.
  core::UniqueFd map(::fcntl(ring->map_fd(), F_DUPFD_CLOEXEC, 0));
  if (!map) return fail(Error::from_errno("duplicate a ring's descriptor"));
  impl_->rings.emplace(tenant_index, std::move(*ring));
  impl_->drops_before[tenant_index] = impl_->loaded->ring_drops(tenant_index);
  boost::asio::post(impl_->worker, [impl = impl_.get(), tenant_index, map = std::move(map)] {
    const int fd = map.get();
    bpf_map_update_elem(impl->loaded->maps().events, &tenant_index, &fd, BPF_ANY);  // else: drops
  });
  return {};
}

void Tracer::remove_tenant(std::uint32_t tenant_index) {
  if (tenant_index == 0 || impl_->rings.erase(tenant_index) == 0) return;
  boost::asio::post(impl_->worker, [impl = impl_.get(), tenant_index] {
    bpf_map_delete_elem(impl->loaded->maps().events, &tenant_index);
  });
}

Result<void> Tracer::set_tenant(SlotIdentity identity, std::uint32_t tenant_index) {
  kv_slot_info* info = impl_->info_of(identity);
  if (info == nullptr) return fail(ErrorCode::not_found, "the slot is not in use");
  if (tenant_index >= impl_->options.max_tenants)
    return fail(ErrorCode::invalid_argument, "no such tenant index");
  store(info->tenant, tenant_index);
  return {};
}

std::uint64_t Tracer::ring_drops(std::uint32_t tenant_index) const {
  if (tenant_index >= impl_->options.max_tenants) return 0;
  const auto before = impl_->drops_before.find(tenant_index);
  return impl_->loaded->ring_drops(tenant_index) - (before != impl_->drops_before.end() ? before->second : 0);
}

// --- about itself
// ------------------------------------------------------------------------------------------------

void Tracer::settle() {
  impl_->loaded->settle();
}

Result<bool> Tracer::look_for_kvm() {
  return impl_->loaded->attach_kvm();
}

void Tracer::count_threads() {
  impl_->loaded->count_threads();
}

std::size_t Tracer::in_flight(SlotIdentity identity) const {
  const auto under_way = [&](const auto& entry) {
    return __atomic_load_n(&entry.start_ns, __ATOMIC_ACQUIRE) != 0 && identity_of(entry.id) == identity;
  };
  const kv_globals& globals = impl_->loaded->globals();
  auto count = static_cast<std::size_t>(std::ranges::count_if(impl_->loaded->carries(), under_way));
  if (const kv_slot_info* info = impl_->info_of(identity); info != nullptr) count += load(info->dying);
  if (__atomic_load_n(&globals.overflow_live, __ATOMIC_RELAXED) > 0)
    count += count_values<kv_carry>(impl_->loaded->maps().carry_overflow, under_way);
  if (__atomic_load_n(&globals.bios_live, __ATOMIC_RELAXED) > 0)
    count += count_values<kv_bio>(impl_->loaded->maps().bios, under_way);
  return count;
}

bool Tracer::has_threads(core::ProcessKey process) const {
  return process_has_threads(process.tgid, process.start_ticks);
}

std::vector<SelfStat> Tracer::self_stats() const {
  std::vector<SelfStat> out;
  out.reserve(KV_STATS);
  for (std::size_t i = 0; i < KV_STATS; ++i) {
    out.push_back({.name = kStats[i].name,
                   .description = kStats[i].description,
                   .value = __atomic_load_n(&impl_->loaded->globals().stats[i], __ATOMIC_RELAXED)});
  }
  return out;
}

std::vector<ProgramInfo> Tracer::programs() const {
  return impl_->loaded->programs();
}

Result<void> Tracer::enable_run_stats(bool on) {
  if (on == static_cast<bool>(impl_->run_stats)) return {};
  if (!on) {
    impl_->run_stats.reset();
    return {};
  }
  core::UniqueFd enabled(bpf_enable_stats(BPF_STATS_RUN_TIME));
  if (!enabled) return fail(Error::from_errno("switch on run-time statistics (needs CAP_SYS_ADMIN)"));
  impl_->run_stats = std::move(enabled);
  return {};
}

IdentityHook Tracer::identity_hook() const {
  return impl_->loaded->identity_hook();
}

}  // namespace kvmscope::bpf
