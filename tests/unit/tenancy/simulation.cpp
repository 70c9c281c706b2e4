// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/tenancy/simulation.h"

namespace kvmscope::tenancy::testing {
namespace {

constexpr std::size_t kVms = 14;
constexpr std::chrono::nanoseconds kLongestStep = 2s;

RegistryConfig config_for(const SimulationOptions& options) {
  RegistryConfig config = small_config();
  config.max_slots = options.max_slots;
  config.max_tenants = 64;
  config.unattributed_after = 30s;
  if (options.shared_tenants) config.default_quota.slots = 3;
  for (std::size_t i = 0; i < kVms; i += 5) {
    config.rules.push_back({"u" + std::to_string(i), "", {"rule" + std::to_string(i)}});
  }
  return config;
}

}  // namespace

Simulation::Simulation(const SimulationOptions& options)
    : options_(options),
      random_(options.seed),
      config_(config_for(options)),
      kernel_(config_.max_slots, config_.max_tenants),
      registry_(config_) {
  for (std::size_t i = 0; i < kVms; ++i) {
    Vm vm;
    vm.uuid = "u" + std::to_string(i);
    if (i % 5 == 0) vm.rule = "rule" + std::to_string(i);
    if (i % 5 != 0 && i % 3 != 0) vm.owner = some_owner(i);
    vm.owners_ever = {truth(vm)};
    vms_.push_back(vm);
  }
  apply(registry_.start(now_));
}

std::string Simulation::some_owner(std::size_t vm) {
  if (options_.shared_tenants) return "t" + std::to_string(below(4));
  return "vm" + std::to_string(vm) + (options_.owners_change && chance(50) ? "-b" : "-a");
}

void Simulation::step() {
  const std::uint32_t dice = below(100);
  const std::size_t vm = below(kVms);
  if (dice < 40) {
    deliver_one();
  } else if (dice < 65) {
    work();
  } else if (dice < 73) {
    tick(std::chrono::milliseconds(below(static_cast<std::uint32_t>(kLongestStep / 1ms))));
  } else if (dice < 79) {
    if (vms_[vm].process.tgid == 0) start_process(vm, false);
  } else if (dice < 83) {
    if (vms_[vm].process.tgid != 0) stop_vm(vms_[vm]);
  } else if (dice < 87) {
    change_owner(vm);
  } else if (dice < 89) {
    if (vms_[vm].process.tgid != 0) {  // a disk is plugged or pulled
      vms_[vm].disks = 1 + below(20);
      say_seen(vm);
    }
  } else if (dice < 91) {
    start_process(vm, true);
  } else if (dice < 92) {
    libvirt_up_ = !libvirt_up_;
    if (libvirt_up_) relist();
  } else if (dice < 93) {
    if (vms_[vm].process.tgid != 0) say_gone(vms_[vm], vms_[vm].process);  // a mistake, taken back some time
    say_seen(vm);
  } else if (dice < 94) {
    contradict();
  } else if (dice < 95) {
    reconfigure();
  } else if (dice < 97) {
    if (options_.lossy) audit();
  } else {
    acknowledge(false);
  }
  check_invariants();
}

void Simulation::finish() {
  libvirt_up_ = true;
  for (Vm& vm : vms_) {
    if (vm.process.tgid != 0) stop_vm(vm);
  }
  const std::set<core::ProcessKey> probes = kernel_.alive;
  for (const core::ProcessKey process : probes) {
    kernel_.alive.erase(process);
    later([this, process] { apply(registry_.on_process_exit(process, now_)); });
  }
  for (int round = 0; round < 60; ++round) {
    while (!pending_.empty()) deliver_one();
    audit();
    tick(kLongestStep);
    check_invariants();
  }
  acknowledge(true);
  tick(100s);
  while (!pending_.empty()) deliver_one();
  tick(1s);

  check(registry_.epochs().empty(), "epochs are left");
  check(registry_.tenants().empty() && kernel_.rings.empty(), "tenants are left");
  check(kernel_.bound.empty(), "processes are left");
  const RegistryStats stats = registry_.stats();
  check(stats.slots_in_use == 0 && stats.slots_retiring == 0, "slots are left");
  check(stats.slots_spare >= config_.spare_slots && kernel_.spares() == stats.slots_spare,
        "spares are missing");
  check(attributed_units + unattributed_units + dropped_units_ == counted_units_,
        "work is missing or counted twice");
}

// --- the world

void Simulation::start_process(std::size_t vm, bool foreign) {
  now_.monotonic_ns += 10'000'000;
  now_.unix_ns += 10'000'000;
  now_.boottime_ns += 10'000'000;
  // Few process ids, so that they are reused all the time.
  core::ProcessKey process{100 + below(30), now_.boottime_ns / 10'000'000};
  for (const core::ProcessKey other : kernel_.alive) {
    if (other.tgid == process.tgid) return;
  }
  lives_[process] = {.vm = vm, .foreign = foreign, .told = {}, .slots = {}};
  const bool at_exec = chance(85);  // else it ran before the daemon came
  if (at_exec) {
    const core::SlotIdentity identity = kernel_.exec(process);
    if (identity.slot != core::kHostSlot) {
      record_slot(process, identity);
      event([this, process, identity] { claimed(process, identity); });
    }
  } else {
    kernel_.alive.insert(process);
  }
  if (foreign) return;
  vms_[vm].process = process;
  say_seen(vm);
}

void Simulation::stop_vm(Vm& vm) {
  const core::ProcessKey process = std::exchange(vm.process, {});
  kernel_.alive.erase(process);
  event([this, process] { apply(registry_.on_process_exit(process, now_)); });
  say_gone(vm, process);
}

void Simulation::change_owner(std::size_t number) {
  Vm& vm = vms_[number];
  if (!vm.rule.empty()) return;
  if (!vm.owner.empty() && !options_.owners_change) return;
  vm.owner = some_owner(number);
  vm.owners_ever.insert(vm.owner);
  say_seen(number);
}

void Simulation::work() {
  for (const auto& [process, identity] : kernel_.bound) {
    if (!kernel_.alive.contains(process) || !chance(40)) continue;
    const Life& life = lives_.at(process);
    Slot& slot = slots_.at(identity);
    const std::uint64_t count = 1 + below(5);
    kernel_.work(process, count);
    counted_units_ += count;
    slot.units.push_back({count, life.foreign ? "" : truth(vms_[life.vm]), life.told});

    const Epoch* epoch = registry_.by_process(process);
    const bool ended = epoch == nullptr || epoch->state == EpochState::draining;
    const auto patience = static_cast<std::uint64_t>((config_.linger + kLongestStep).count());
    const bool overdue = now_.monotonic_ns > life.told_since_ns + patience;
    check(ended || slot.owner == life.told || !overdue, "work still goes to a former owner");
  }
}

void Simulation::record_slot(core::ProcessKey process, core::SlotIdentity identity) {
  Life& life = lives_.at(process);
  life.slots.push_back(identity);
  slots_[identity] = {process, life.told, {}};
}

// --- what libvirt says

core::VmFacts Simulation::facts(const Vm& vm) const {
  core::VmFacts out;
  out.uuid = {vm.uuid};
  out.name = "twin";
  out.process = vm.process;
  out.disks.assign(vm.disks, disk("vda"));
  if (!vm.owner.empty()) out.nova.emplace().project_id = vm.owner;
  return out;
}

void Simulation::say_seen(std::size_t number) {
  const Vm& vm = vms_[number];
  if (!libvirt_up_ || vm.process.tgid == 0) return;
  reported_[vm.uuid] = vm.process;
  event([this, said = facts(vm)] { seen(said); });
}

void Simulation::say_gone(const Vm& vm, core::ProcessKey process) {
  if (!libvirt_up_) return;
  reported_.erase(vm.uuid);
  event([this, uuid = vm.uuid, process] { apply(registry_.on_vm_gone({uuid}, process, now_)); });
}

void Simulation::relist() {
  for (std::size_t i = 0; i < kVms; ++i) {
    const auto before = reported_.find(vms_[i].uuid);
    if (before != reported_.end() && before->second != vms_[i].process) say_gone(vms_[i], before->second);
    say_seen(i);
  }
}

/// Another domain's facts with a process that is known not to be its own.
void Simulation::contradict() {
  for (const auto& [process, life] : lives_) {
    if (life.foreign || (!life.hint_known && life.told.empty()) || !chance(20)) continue;
    if (registry_.by_process(process) == nullptr) continue;
    core::VmFacts wrong = facts(vms_[(life.vm + 1) % kVms]);
    wrong.process = process;
    apply(registry_.on_vm(wrong, now_));
    return;
  }
}

// --- the daemon

void Simulation::event(std::function<void()> event) {
  if (options_.lossy && chance(5)) return;
  if (chance(10)) later(event);
  later(std::move(event));
}

void Simulation::deliver_one() {
  if (pending_.empty()) return;
  const std::size_t which = below(static_cast<std::uint32_t>(pending_.size()));
  const std::function<void()> event = std::move(pending_[which]);
  pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(which));
  event();
}

std::optional<ProcessHint> Simulation::describe(core::ProcessKey process) {
  if (!kernel_.alive.contains(process)) return std::nullopt;
  Life& life = lives_.at(process);
  if (life.foreign) return ProcessHint{{}, {}, life.vm % 2 == 0, life.vm % 2 != 0};
  if (life.vm % 4 == 3) return std::nullopt;  // could not be read
  life.hint_known = true;
  return ProcessHint{{vms_[life.vm].uuid}, "twin", false, false};
}

void Simulation::claimed(core::ProcessKey process, core::SlotIdentity identity) {
  apply(registry_.on_claimed(process, identity, "qemu", describe(process), now_));
}

void Simulation::seen(const core::VmFacts& said) {
  Life& life = lives_.at(said.process);
  const Vm& vm = vms_[life.vm];
  const std::string owner = said.nova ? said.nova->project_id : vm.rule;
  if (!owner.empty() && owner != life.told) {
    life.told = owner;
    life.told_since_ns = now_.monotonic_ns;
    for (const core::SlotIdentity identity : life.slots) {
      if (slots_.at(identity).owner.empty()) slots_.at(identity).owner = owner;
    }
  }
  apply(registry_.on_vm(said, now_));
}

void Simulation::retired(core::SlotIdentity identity) {
  const Epoch* epoch = registry_.by_slot(identity);
  const std::uint64_t work = kernel_.retired(identity);
  Slot& slot = slots_.at(identity);
  std::uint64_t known = 0;
  for (const Unit& unit : slot.units) known += unit.count;
  check(work == known, "the slot counted something else");
  if (epoch == nullptr) {
    check(lives_.at(slot.process).foreign, "a VM's work is thrown away");
    dropped_units_ += work;
  } else {
    check(drained_.emplace(epoch->serial, slot.units).second, "drained twice");
  }
  apply(registry_.on_retired(identity, now_));
  if (chance(10)) apply(registry_.on_retired(identity, now_));
}

/// What the app does against lost events: compares the registry with the kernel's table and with /proc.
void Simulation::audit() {
  for (const auto& [process, identity] : std::map(kernel_.bound)) {
    if (registry_.by_slot(identity) == nullptr && !kernel_.find(identity).retiring)
      claimed(process, identity);
  }
  std::vector<core::ProcessKey> dead;
  for (const Epoch* epoch : registry_.epochs()) {
    if (epoch->state != EpochState::closed && !kernel_.alive.contains(epoch->process))
      dead.push_back(epoch->process);
  }
  for (const core::ProcessKey process : dead) apply(registry_.on_process_exit(process, now_));
  if (libvirt_up_) relist();
}

void Simulation::tick(std::chrono::nanoseconds after) {
  const auto ns = static_cast<std::uint64_t>(after.count());
  now_.monotonic_ns += ns;
  now_.unix_ns += ns;
  now_.boottime_ns += ns;
  apply(registry_.tick(now_));
}

void Simulation::reconfigure() {
  config_.default_quota.disks_per_vm = static_cast<std::uint16_t>(2 + below(16));
  if (options_.shared_tenants) {
    config_.tenant_quotas[{"t0"}].slots = below(5);
    config_.default_quota.slots = 1 + below(4);
  }
  config_.spare_slots = 1 + below(5);
  apply(registry_.reconfigure(config_, now_));
}

void Simulation::acknowledge(bool all) {
  std::vector<std::uint64_t> serials;
  for (const Epoch* epoch : registry_.epochs()) {
    if (epoch->state != EpochState::closed || (!all && !chance(50))) continue;
    account(*epoch);
    serials.push_back(epoch->serial);
  }
  for (const std::uint64_t serial : serials) registry_.forget(serial);
}

void Simulation::apply(Actions actions) {
  queue_.insert(queue_.end(), actions.begin(), actions.end());
  if (std::exchange(busy_, true)) return;
  while (!queue_.empty()) {
    const Action action = queue_.front();
    queue_.pop_front();
    run(action);
  }
  busy_ = false;
}

void Simulation::run(const Action& action) {
  if (const auto* install = std::get_if<InstallSpare>(&action)) {
    kernel_.install(*install);
    later([this, identity = install->identity] {
      if (chance(10)) {
        kernel_.install_failed(identity);
        return apply(registry_.on_install_failed(identity, now_));
      }
      kernel_.offer(identity);
      apply(registry_.on_installed(identity, now_));
    });
  } else if (const auto* claim = std::get_if<Claim>(&action)) {
    const bool had = kernel_.bound.contains(claim->process);
    const auto answer = kernel_.claim(claim->process);
    if (!answer) return apply(registry_.on_claim_failed(claim->process, answer.error(), now_));
    if (!had) record_slot(claim->process, *answer);
    claimed(claim->process, *answer);
  } else if (const auto* rebind = std::get_if<Rebind>(&action)) {
    const auto answer = kernel_.rebind(rebind->process);
    if (!answer) return apply(registry_.on_claim_failed(rebind->process, answer.error(), now_));
    record_slot(rebind->process, *answer);
    apply(registry_.on_rebound(rebind->process, *answer, now_));
  } else if (const auto* bind = std::get_if<BindTasks>(&action)) {
    kernel_.bind(*bind);
  } else if (const auto* number = std::get_if<NumberDisks>(&action)) {
    kernel_.number(*number);
  } else if (const auto* nics = std::get_if<NumberNics>(&action)) {
    kernel_.number(*nics);
  } else if (const auto* grow = std::get_if<Grow>(&action)) {
    kernel_.grow(*grow);
    later([this, wanted = *grow, ok = chance(80)] {
      kernel_.grown(wanted, ok);
      apply(registry_.on_grown(wanted.identity, ok, now_));
    });
  } else if (const auto* add = std::get_if<AddTenant>(&action)) {
    kernel_.add_tenant(*add);
  } else if (const auto* remove = std::get_if<RemoveTenant>(&action)) {
    kernel_.remove_tenant(*remove);
  } else if (const auto* set = std::get_if<SetTenant>(&action)) {
    kernel_.set_tenant(*set);
  } else if (const auto* unbind = std::get_if<Unbind>(&action)) {
    kernel_.unbind(unbind->process);
  } else if (const auto* retire = std::get_if<Retire>(&action)) {
    kernel_.retire(retire->identity);
    later([this, identity = retire->identity] { retired(identity); });
  } else if (const auto* discard = std::get_if<Discard>(&action)) {
    kernel_.unbind(discard->process);
    kernel_.retire(discard->identity);
    later([this, identity = discard->identity] { retired(identity); });
  }
}

// --- the truth

void Simulation::check_invariants() {
  std::set<core::SlotIdentity> held;
  std::set<core::EpochId> ids;
  std::map<std::string, std::uint32_t> in_use;
  for (const Epoch* epoch : registry_.epochs()) {
    check_epoch(*epoch);
    if (!epoch->id.value.empty()) check(ids.insert(epoch->id).second, "two epochs of one id");
    if (epoch->slot.slot != core::kHostSlot) check(held.insert(epoch->slot).second, "a slot in two hands");
    const bool wanted = lives_.at(epoch->process).told == epoch->tenant.value;
    if (epoch->state == EpochState::attributed && wanted) ++in_use[epoch->tenant.value];
  }
  for (const auto& [tenant, slots] : in_use) {
    const auto own = config_.tenant_quotas.find({tenant});
    const Quota& quota = own == config_.tenant_quotas.end() ? config_.default_quota : own->second;
    check(slots <= quota.slots, "more VMs are traced than the quota allows");
  }
  const RegistryStats stats = registry_.stats();
  check(stats.slots_in_use + stats.slots_spare + stats.slots_retiring <= stats.slots_total,
        "more slots than there are");
}

void Simulation::check_epoch(const Epoch& epoch) {
  if (epoch.state == EpochState::over_quota) {
    check(epoch.slot == core::SlotIdentity{} && !epoch.tenant.value.empty(), "over quota, but counts");
    return;
  }
  if (epoch.slot.slot != core::kHostSlot) slot_of_.emplace(epoch.serial, epoch.slot);
  const core::SlotIdentity identity = slot_of_.at(epoch.serial);
  const Slot& slot = slots_.at(identity);
  check(slot.process == epoch.process, "a process counts in another's slot");
  check(epoch.start_unix_ns <= now_.unix_ns, "began in the future");
  check(epoch.tenant.value.empty() == (epoch.tenant_index == 0), "a tenant without a ring");
  const Life& life = lives_.at(epoch.process);
  check(!life.foreign || epoch.tenant.value.empty(), "a stranger is attributed");
  if (!epoch.tenant.value.empty()) {
    const std::string& rule = vms_[life.vm].rule;
    check(epoch.tenant.value == slot.owner || epoch.tenant.value == rule,
          "attributed to somebody nobody named");
    check(kernel_.rings.at(epoch.tenant_index) == epoch.tenant, "somebody else's ring");
    if (epoch.facts && epoch.facts->nova) {
      check(epoch.facts->nova->project_id == epoch.tenant.value, "facts of another owner");
    }
  }
  if (epoch.state != EpochState::closed) return;
  const auto [closed, first] = closed_.emplace(epoch.serial, epoch.tenant.value);
  check(closed->second == epoch.tenant.value, "a closed epoch changed hands");
  if (!first) return;
  check(drained_.contains(epoch.serial), "closed before it was drained");
  check(!epoch.tenant.value.empty() || slot.owner.empty(),
        "unattributed although its owner was named in time");
}

void Simulation::account(const Epoch& closed) {
  const std::string& tenant = closed.tenant.value;
  const Slot& slot = slots_.at(slot_of_.at(closed.serial));
  const Life& life = lives_.at(closed.process);
  for (const Unit& unit : drained_.at(closed.serial)) {
    (tenant.empty() ? unattributed_units : attributed_units) += unit.count;
    if (tenant.empty()) continue;
    check(vms_[life.vm].owners_ever.contains(tenant), "charged to a tenant who never owned the VM");
    check(tenant == unit.truth || tenant == unit.told || tenant == slot.owner, "charged to the wrong tenant");
    const bool settled = !unit.told.empty() && unit.told == unit.truth && slot.owner == unit.told;
    check(!settled || tenant == unit.truth, "charged to the wrong tenant, though all was settled");
  }
}

}  // namespace kvmscope::tenancy::testing
