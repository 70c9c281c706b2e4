// SPDX-License-Identifier: Apache-2.0
#include "hostd/slot_keeper.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <utility>

#include "bpf/abi.h"

namespace kvmscope::hostd {
namespace {

static_assert(tenancy::Quota::kMostDisks <= KV_MAX_DISKS && tenancy::Quota::kMostNics <= KV_MAX_NICS);

constexpr std::uint64_t kMaxInFlightNs = 120'000'000'000;

/// Device mapper, zram and their kind have no request queue: their sysfs directory has no mq below it.
bool is_bio_based(std::uint32_t major, std::uint32_t minor) {
  const std::string device = std::to_string(major) + ":" + std::to_string(minor);
  std::error_code ignored;
  const auto directory = std::filesystem::canonical("/sys/dev/block/" + device, ignored);
  if (ignored) return false;
  const bool partition = std::filesystem::exists(directory / "partition", ignored);
  return !std::filesystem::exists((partition ? directory.parent_path() : directory) / "mq", ignored);
}

constexpr std::uint64_t kNsPerTick = 10'000'000;
/// A VM that is counted so soon after its process's start is counted from its start.
constexpr std::uint64_t kStartNs = 2'000'000'000;

std::vector<bpf::DiskKey> keys_of_all(const std::vector<core::Disk>& disks) {
  std::vector<bpf::DiskKey> keys;
  for (const core::Disk& disk : disks) {
    for (const bpf::DiskKey key : keys_of(disk)) {
      if (std::ranges::find(keys, key) == keys.end()) keys.push_back(key);
    }
  }
  return keys;
}

}  // namespace

SlotKeeper::SlotKeeper(bpf::Tracer& tracer, tenancy::Registry& registry, const core::Clock& clock,
                       Report report, std::string cgroup_root)
    : tracer_(tracer),
      registry_(registry),
      clock_(clock),
      report_(std::move(report)),
      cgroup_root_(std::move(cgroup_root)) {}

void SlotKeeper::bring_up_to_date() {
  tracer_.settle();
  tracer_.count_threads();
  for (const tenancy::Epoch* epoch : registry_.epochs()) {
    read_steal(*epoch);
    if (const auto found = epochs_.find(generation(*epoch)); found != epochs_.end() && found->second.live) {
      EpochData& data = found->second;
      add_queue_depth(*data.live, tracer_.nics(epoch->slot), epoch->facts ? &*epoch->facts : nullptr,
                      data.totals);
    }
  }
}

/// Steal is the wait for a CPU without what quotas are the reason of. The kernel adds to both at different
/// moments: steal never falls.
void SlotKeeper::read_steal(const tenancy::Epoch& epoch) {
  const auto found = epochs_.find(generation(epoch));
  if (found == epochs_.end() || !found->second.live) return;
  EpochData& data = found->second;
  const bool known = epoch.facts && !epoch.facts->cgroup_path.empty() && !cgroup_root_.empty();
  const std::uint16_t vcpus = std::max<std::uint16_t>(data.live->shape().vcpus, 1);
  virt::CpuThrottle throttle{.vm_ns = 0, .vcpu_ns = std::vector<std::uint64_t>(vcpus)};
  if (known) throttle = virt::read_cpu_throttle(cgroup_root_ + epoch.facts->cgroup_path, vcpus);
  if (known && !data.throttle_before) {
    data.throttle_before = from_its_start(epoch)
                               ? virt::CpuThrottle{.vm_ns = 0, .vcpu_ns = std::vector<std::uint64_t>(vcpus)}
                               : throttle;
  }
  add_steal(*data.live, throttle, data.throttle_before, data.totals);
}

bool SlotKeeper::from_its_start(const tenancy::Epoch& epoch) const {
  if (!epoch.first_of_process) return false;
  const std::uint64_t started_ns = epoch.process.start_ticks * kNsPerTick;
  const std::uint64_t age_ns = now().unix_ns - std::min(epoch.start_unix_ns, now().unix_ns);
  return now().boottime_ns - age_ns < started_ns + kStartNs;
}

void SlotKeeper::on_block_stats(const std::vector<virt::BlockReading>& readings) {
  for (const tenancy::Epoch* epoch : registry_.epochs()) {
    if (!epoch->facts || registry_.by_process(epoch->process) != epoch) continue;  // a former owner's
    // What was asked for before the VM changed hands says what the former owner did.
    const auto reading = std::ranges::find_if(readings, [&](const virt::BlockReading& one) {
      return one.uuid == epoch->facts->uuid && one.domain_id == epoch->facts->domain_id &&
             !one.disks.empty() && one.asked_unix_ns >= epoch->start_unix_ns;
    });
    const auto found = epochs_.find(generation(*epoch));
    if (reading == readings.end() || found == epochs_.end()) continue;
    EpochData& data = found->second;
    data.guest_disks.read(*reading, from_its_start(*epoch), epoch->start_unix_ns, data.totals);
  }
}

void SlotKeeper::carry_out(tenancy::Actions actions) {
  std::ranges::move(actions, std::back_inserter(actions_));
  if (carrying_out_) return;
  carrying_out_ = true;
  while (!actions_.empty()) {
    const tenancy::Action action = std::move(actions_.front());
    actions_.pop_front();
    std::visit([this](const auto& one) { apply(one); }, action);
  }
  carrying_out_ = false;
}

void SlotKeeper::check(const std::string& what, const core::Result<void>& result) const {
  if (!result) report_(what, result.error());
}

bool SlotKeeper::claim(core::ProcessKey process, const std::string& comm,
                       const std::optional<tenancy::ProcessHint>& hint) {
  const auto identity = tracer_.claim(process);
  if (identity) {
    tracer_.count_threads();  // its times are counted from now on
    on_claimed(process, *identity, comm, hint);
    return true;
  }
  if (identity.error().code() == core::ErrorCode::not_found) return true;  // it has ended meanwhile
  report_("claim a slot", identity.error());
  return false;
}

void SlotKeeper::apply(const tenancy::InstallSpare& action) {
  const core::SlotIdentity identity = action.identity;
  tracer_.install(identity, next_incarnation(), action.shape,
                  [this, identity](core::Result<bpf::SlotMaps> maps) {
                    if (!maps) {
                      report_("install a spare slot", maps.error());
                      return carry_out(registry_.on_install_failed(identity, now()));
                    }
                    epochs_[identity.generation].live.emplace(std::move(*maps));
                    if (const auto offered = tracer_.offer_spare(identity); !offered) {
                      report_("offer a spare slot", offered.error());
                      epochs_.erase(identity.generation);
                      return carry_out(registry_.on_install_failed(identity, now()));
                    }
                    carry_out(registry_.on_installed(identity, now()));
                  });
}

void SlotKeeper::apply(const tenancy::Claim& action) {
  const auto identity = tracer_.claim(action.process);
  if (identity) tracer_.count_threads();
  carry_out(identity ? registry_.on_claimed(action.process, *identity, "", std::nullopt, now())
                     : registry_.on_claim_failed(action.process, identity.error(), now()));
}

void SlotKeeper::apply(const tenancy::Rebind& action) {
  const auto identity = tracer_.rebind(action.process);
  if (identity) tracer_.count_threads();  // up to now the former owner's
  carry_out(identity ? registry_.on_rebound(action.process, *identity, now())
                     : registry_.on_claim_failed(action.process, identity.error(), now()));
}

void SlotKeeper::apply(const tenancy::BindTasks& action) {
  check("bind cgroups", tracer_.bind(action.process, action.cgroup_ids, action.helpers));
}

void SlotKeeper::apply(const tenancy::NumberDisks& action) {
  const auto needs_bios = [](const auto& image) {
    return image.backing != core::DiskBacking::invisible &&
           is_bio_based(image.device_major, image.device_minor);
  };
  if (std::ranges::any_of(action.disks, [&](const core::Disk& disk) {
        return needs_bios(disk) || std::ranges::any_of(disk.more_images, needs_bios);
      })) {
    check("trace devices without requests", tracer_.need_bio_devices());
  }
  const auto devs = tracer_.number_disks(action.identity, keys_of_all(action.disks));
  if (!devs) return report_("number disks", devs.error());
  // The kernel numbers at first sight what libvirt does not list too, so numbers may exceed the count of
  // disks.
  if (devs->empty()) return;
  const auto rows = static_cast<std::uint16_t>(*std::ranges::max_element(*devs) + 2);
  grow(action.identity, {.disks = std::min(rows, action.max_rows), .vcpus = 0, .nics = 0});
}

void SlotKeeper::apply(const tenancy::NumberNics& action) {
  std::vector<bpf::NicKey> keys;
  for (const core::Nic& nic : action.nics) keys.push_back(bpf::nic_key(nic.netns, nic.ifindex));
  const auto devs = tracer_.number_nics(action.identity, keys);
  if (!devs) return report_("number NICs", devs.error());
  if (devs->empty()) return;
  // With a row for the next one: a NIC that is plugged in may have its first packets before libvirt tells of
  // it.
  const auto rows = static_cast<std::uint16_t>(*std::ranges::max_element(*devs) + 3);
  grow(action.identity, {.disks = 0, .vcpus = 0, .nics = std::min(rows, action.max_rows)});
}

void SlotKeeper::apply(const tenancy::Grow& action) {
  const auto epoch = epochs_.find(action.identity.generation);
  const bool large_enough = epoch != epochs_.end() && epoch->second.live &&
                            !growing_.contains(action.identity) &&
                            epoch->second.live->shape().covers(action.shape);
  if (large_enough) return carry_out(registry_.on_grown(action.identity, true, now()));
  grow(action.identity, action.shape);
}

void SlotKeeper::grow(core::SlotIdentity identity, core::SlotShape wanted) {
  const auto epoch = epochs_.find(identity.generation);
  if (epoch == epochs_.end() || !epoch->second.live) return;
  const auto pending = growing_.find(identity);
  const core::SlotShape there = pending != growing_.end() ? pending->second : epoch->second.live->shape();
  if (there.covers(wanted)) return;
  const core::SlotShape shape = there.with(wanted);
  growing_[identity] = shape;
  tracer_.grow(identity, next_incarnation(), shape,
               [this, identity, shape](core::Result<bpf::SlotMaps> fresh) {
                 if (const auto newest = growing_.find(identity);
                     newest != growing_.end() && newest->second == shape) {
                   growing_.erase(newest);
                 }
                 const bool ok = fresh.has_value();
                 if (!ok) {
                   report_("grow a slot", fresh.error());
                 } else if (const auto data = epochs_.find(identity.generation);
                            data != epochs_.end() && data->second.live) {
                   fold_incarnation(*data->second.live, data->second.totals);
                   data->second.live.emplace(std::move(*fresh));
                 }
                 carry_out(registry_.on_grown(identity, ok, now()));
               });
}

void SlotKeeper::apply(const tenancy::AddTenant& action) {
  check("make a tenant's ring", tracer_.add_tenant(action.index, action.ring_bytes));
}

void SlotKeeper::apply(const tenancy::RemoveTenant& action) {
  tracer_.remove_tenant(action.index);
}

void SlotKeeper::apply(const tenancy::SetTenant& action) {
  check("set a slot's tenant", tracer_.set_tenant(action.identity, action.index));
}

void SlotKeeper::apply(const tenancy::Unbind& action) {
  tracer_.count_threads();
  tracer_.unbind(action.process);
}

void SlotKeeper::apply(const tenancy::Discard& action) {
  tracer_.unbind(action.process);
  drain(action.identity, true);
}

void SlotKeeper::tick() {
  carry_out(registry_.tick(now()));
  for (auto slot = retiring_.begin(); slot != retiring_.end();) {
    if (busy(slot->first) && now().monotonic_ns < slot->second) {
      ++slot;
      continue;
    }
    drain(slot->first, false);
    slot = retiring_.erase(slot);
  }
}

/// Whether something that counts in the slot is still under way: requests, threads that have not quite ended,
/// and those that an ended process has before that: the kernel reports its end when the first of the last
/// comes by.
bool SlotKeeper::busy(core::SlotIdentity identity) const {
  if (tracer_.in_flight(identity) > 0) return true;
  const tenancy::Epoch* epoch = registry_.by_slot(identity);
  return epoch != nullptr && registry_.by_process(epoch->process) == epoch &&
         tracer_.has_threads(epoch->process);
}

/// A request is its tenant's to its end, however slow the storage is; what takes longer still is `late`.
void SlotKeeper::retire_when_idle(core::SlotIdentity identity) {
  tracer_.settle();
  if (!busy(identity)) return drain(identity, false);
  retiring_.emplace(identity, now().monotonic_ns + kMaxInFlightNs);
}

void SlotKeeper::drain(core::SlotIdentity identity, bool discard) {
  tracer_.settle();
  if (const auto epoch = epochs_.find(identity.generation); epoch != epochs_.end() && !discard) {
    epoch->second.disks = tracer_.disks(identity);  // gone from the kernel once the slot is retired
    epoch->second.nics = tracer_.nics(identity);
  }
  tracer_.retire(identity, [this, identity, discard](core::Result<void> retired) {
    // Without the kernel's word that nobody writes any more the slot must not be given to another: it stays
    // taken.
    if (!retired) return report_("retire a slot", retired.error());
    if (const tenancy::Epoch* epoch = registry_.by_slot(identity)) {
      generations_[epoch->serial] = identity.generation;
      read_steal(*epoch);
    }
    if (const auto epoch = epochs_.find(identity.generation); epoch != epochs_.end()) {
      if (discard) {
        epochs_.erase(epoch);
      } else if (epoch->second.live) {
        fold_incarnation(*epoch->second.live, epoch->second.totals);
        epoch->second.live.reset();
      }
    }
    carry_out(registry_.on_retired(identity, now()));
  });
}

core::Generation SlotKeeper::generation(const tenancy::Epoch& epoch) {
  if (epoch.slot.slot == core::kHostSlot) {
    const auto known = generations_.find(epoch.serial);
    return known != generations_.end() ? known->second : core::Generation{};
  }
  generations_[epoch.serial] = epoch.slot.generation;
  return epoch.slot.generation;
}

const EpochData* SlotKeeper::data(const tenancy::Epoch& epoch) {
  const auto found = epochs_.find(generation(epoch));
  if (found == epochs_.end()) return nullptr;
  EpochData& data = found->second;
  if (data.live) {
    std::vector<bpf::NumberedDisk> disks = tracer_.disks(epoch.slot);
    if (!disks.empty()) data.disks = std::move(disks);
    std::vector<bpf::NicKey> nics = tracer_.nics(epoch.slot);
    if (!nics.empty()) data.nics = std::move(nics);
    data.shape = data.live->shape();
  }
  const bool last_chance = !data.live.has_value() || naming_closed_;
  const core::VmFacts* facts = epoch.facts ? &*epoch.facts : nullptr;
  data.devices = label_disks(facts, data.disks, last_chance, data.names);
  std::ranges::move(label_nics(facts, data.nics, now().monotonic_ns, last_chance, data.nic_names),
                    std::back_inserter(data.devices));
  std::ranges::move(data.guest_disks.labels(), std::back_inserter(data.devices));
  // Of a VM that has ended it stays what it was.
  const std::uint64_t until_unix_ns = epoch.end_unix_ns != 0 ? epoch.end_unix_ns : now().unix_ns;
  data.totals.set({KV_GUEST_UNOBSERVED, 0, 0},
                  {.count = data.guest_disks.unobserved_ns(epoch.start_unix_ns, until_unix_ns), .sum = 0});
  std::ranges::move(label_vcpus(facts, data.shape.vcpus), std::back_inserter(data.devices));
  data.devices.push_back(vm_label());
  return &data;
}

void SlotKeeper::forget(const tenancy::Epoch& epoch) {
  epochs_.erase(generation(epoch));
  generations_.erase(epoch.serial);
  registry_.forget(epoch.serial);
}

}  // namespace kvmscope::hostd
