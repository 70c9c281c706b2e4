// SPDX-License-Identifier: Apache-2.0
#include "bpf/identities.h"

#include <bpf/bpf.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string>
#include <utility>

#include "bpf/process_files.h"

namespace kvmscope::bpf {
namespace {

using core::Error;
using core::ErrorCode;
using core::fail;
using core::ProcessKey;
using core::Result;
using core::SlotIdentity;

kv_process_key to_kernel(ProcessKey process) {
  return {.tgid = process.tgid, .pad = 0, .start_ticks = process.start_ticks};
}
kv_identity to_kernel(SlotIdentity identity) {
  return {.slot = identity.slot.value, .generation = identity.generation.value};
}
SlotIdentity from_kernel(kv_identity id) {
  return {.slot = {id.slot}, .generation = {id.generation}};
}
bool same(kv_identity a, kv_identity b) {
  return a.slot == b.slot && a.generation == b.generation;
}
bool alive(ProcessKey process) {
  return process_start_ticks(process.tgid) == process.start_ticks;
}

std::optional<kv_process> look_up(int map, const kv_process_key& key) {
  kv_process process{};
  if (bpf_map_lookup_elem(map, &key, &process) != 0) return std::nullopt;
  return process;
}

std::string name_of(ProcessKey process) {
  return "process " + std::to_string(process.tgid);
}

}  // namespace

Result<void> Identities::offer_spare(SlotIdentity identity) {
  const kv_identity id = to_kernel(identity);
  if (bpf_map_update_elem(loaded_.maps().spares, nullptr, &id, BPF_ANY) != 0) {
    return fail(Error::from_errno("offer a spare slot"));
  }
  __atomic_fetch_add(&loaded_.globals().spare_count, 1, __ATOMIC_RELAXED);
  return {};
}

std::uint32_t Identities::spares() const {
  return __atomic_load_n(&loaded_.globals().spare_count, __ATOMIC_RELAXED);
}

Result<kv_identity> Identities::pop_spare() {
  kv_identity id{};
  if (bpf_map_lookup_and_delete_elem(loaded_.maps().spares, nullptr, &id) != 0) {
    return fail(ErrorCode::resource_exhausted, "no spare slot is left");
  }
  __atomic_fetch_sub(&loaded_.globals().spare_count, 1, __ATOMIC_RELAXED);
  return id;
}

void Identities::mark(std::uint32_t tgid, bool vm) {
  if (tgid >= KV_TGIDS) return;
  __u64& word = loaded_.globals().vm_tgids[tgid / 64];
  const __u64 bit = __u64{1} << (tgid % 64);
  if (vm)
    __atomic_fetch_or(&word, bit, __ATOMIC_SEQ_CST);
  else
    __atomic_fetch_and(&word, ~bit, __ATOMIC_SEQ_CST);
}

bool Identities::marked(std::uint32_t tgid) const {
  const __u64& word = loaded_.globals().vm_tgids[(tgid % KV_TGIDS) / 64];
  return (__atomic_load_n(&word, __ATOMIC_SEQ_CST) >> (tgid % 64) & 1) != 0;
}

/// Tasks by cgroup are of unknown thread groups, so that a change of bindings concerns every version there
/// is: each VM thread resolves once more.
void Identities::forget_all_resolved() {
  for (__u32& version : loaded_.globals().versions) __atomic_fetch_add(&version, 1, __ATOMIC_SEQ_CST);
}

Result<SlotIdentity> Identities::claim(ProcessKey process) {
  const kv_process_key key = to_kernel(process);
  const int procs = loaded_.maps().procs;
  const auto there = look_up(procs, key);
  if (there && (there->flags & KV_PROCESS_FOLLOWS) == 0) return from_kernel(there->id);
  if (!alive(process)) return fail(ErrorCode::not_found, name_of(process) + " is gone");
  auto spare = pop_spare();
  if (!spare) return fail(spare.error());
  const kv_process mine{.id = *spare, .flags = 0, .pad = 0};
  // A process that followed another one (forked, or bound as a helper) becomes a VM of its own.
  if (bpf_map_update_elem(procs, &key, &mine, there ? BPF_EXIST : BPF_NOEXIST) != 0) {
    const int why = errno;
    if (auto back = offer_spare(from_kernel(*spare)); !back) return fail(back.error());
    if (const auto winner = look_up(procs, key); why == EEXIST && winner) return from_kernel(winner->id);
    return fail(Error::from_errno("claim a slot for " + name_of(process), why));
  }
  __atomic_fetch_add(&loaded_.globals().versions[process.tgid % KV_VERSIONS], 1, __ATOMIC_SEQ_CST);
  mark(process.tgid, true);
  if (alive(process) || !marked(process.tgid)) return from_kernel(*spare);
  // It died before the mark, so its end was not reported (and it did nothing in the slot).
  mark(process.tgid, false);
  bpf_map_delete_elem(procs, &key);
  if (auto back = offer_spare(from_kernel(*spare)); !back) return fail(back.error());
  return fail(ErrorCode::not_found, name_of(process) + " is gone");
}

Result<SlotIdentity> Identities::rebind(ProcessKey process) {
  const kv_process_key key = to_kernel(process);
  const int procs = loaded_.maps().procs;
  const auto before = look_up(procs, key);
  if (!before) return fail(ErrorCode::not_found, name_of(process) + " holds no slot");
  auto fresh = pop_spare();
  if (!fresh) return fail(fresh.error());
  // The identity first, the versions after: who resolves in between resolves again. The leader before those
  // that follow it, and until none has the old one: new ones may come meanwhile.
  const kv_process leader{.id = *fresh, .flags = before->flags, .pad = 0};
  bpf_map_update_elem(procs, &key, &leader, BPF_EXIST);
  for (bool moved = true; moved;) {
    moved = false;
    for (const auto& [follower, value] : table()) {
      if (!same(value.id, before->id)) continue;
      const kv_process follows{.id = *fresh, .flags = value.flags, .pad = 0};
      if (bpf_map_update_elem(procs, &follower, &follows, BPF_EXIST) != 0 && errno != ENOENT) {
        return fail(Error::from_errno("rebind " + name_of(process)));
      }
      moved = true;
    }
  }
  if (const auto bound = bound_.find(process); bound != bound_.end()) {
    for (const std::uint64_t id : bound->second.cgroup_ids) {
      bpf_map_update_elem(loaded_.maps().cgroups, &id, &*fresh, BPF_EXIST);
    }
  }
  forget_all_resolved();
  return from_kernel(*fresh);
}

Result<void> Identities::bind(ProcessKey process, std::span<const std::uint64_t> cgroup_ids,
                              std::span<const ProcessKey> helpers) {
  const auto holder = look_up(loaded_.maps().procs, to_kernel(process));
  if (!holder) return fail(ErrorCode::not_found, name_of(process) + " holds no slot");
  const Bound fresh{.cgroup_ids = {cgroup_ids.begin(), cgroup_ids.end()},
                    .helpers = {helpers.begin(), helpers.end()}};
  Bound& bound = bound_[process];
  if (bound.cgroup_ids == fresh.cgroup_ids && bound.helpers == fresh.helpers) return {};
  // First those that are: nobody who stays may be nobody's for a moment.
  for (const std::uint64_t id : fresh.cgroup_ids) {
    if (bpf_map_update_elem(loaded_.maps().cgroups, &id, &holder->id, BPF_ANY) != 0) {
      return fail(Error::from_errno("bind a cgroup of " + name_of(process)));
    }
  }
  const kv_process follower{.id = holder->id, .flags = KV_PROCESS_FOLLOWS, .pad = 0};
  for (const ProcessKey& helper : fresh.helpers) {
    const kv_process_key key = to_kernel(helper);
    if (helper == process || !alive(helper)) continue;
    if (bpf_map_update_elem(loaded_.maps().procs, &key, &follower, BPF_ANY) != 0) {
      return fail(Error::from_errno("bind a helper of " + name_of(process)));
    }
    mark(helper.tgid, true);
  }
  Bound over = std::exchange(bound, fresh);
  std::erase_if(over.cgroup_ids, [&](std::uint64_t id) {
    return std::ranges::find(fresh.cgroup_ids, id) != fresh.cgroup_ids.end();
  });
  std::erase_if(over.helpers, [&](const ProcessKey& helper) {
    return std::ranges::find(fresh.helpers, helper) != fresh.helpers.end();
  });
  release(over);
  forget_all_resolved();
  return {};
}

void Identities::release(const Bound& bound) {
  for (const std::uint64_t id : bound.cgroup_ids) bpf_map_delete_elem(loaded_.maps().cgroups, &id);
  for (const ProcessKey& helper : bound.helpers) {
    const kv_process_key key = to_kernel(helper);
    const auto there = look_up(loaded_.maps().procs, key);
    // Only its own doing: the helper may have ended and its id be another VM's by now.
    if (!there || there->flags != KV_PROCESS_FOLLOWS) continue;
    bpf_map_delete_elem(loaded_.maps().procs, &key);
    mark(helper.tgid, false);
  }
}

void Identities::drop_children(kv_identity identity) {
  for (const auto& [key, value] : table()) {
    if (!same(value.id, identity) || (value.flags & KV_PROCESS_FOLLOWS) == 0) continue;
    bpf_map_delete_elem(loaded_.maps().procs, &key);
    mark(key.tgid, false);
  }
}

void Identities::unbind(ProcessKey process) {
  const kv_process_key key = to_kernel(process);
  if (const auto bound = bound_.find(process); bound != bound_.end()) {
    release(bound->second);
    bound_.erase(bound);
  }
  const auto there = look_up(loaded_.maps().procs, key);
  if (there) {
    bpf_map_delete_elem(loaded_.maps().procs, &key);
    drop_children(there->id);
  }
  // A process id that another process has by now keeps its mark.
  const auto start = process_start_ticks(process.tgid);
  if (!start || *start == process.start_ticks) mark(process.tgid, false);
  forget_all_resolved();
}

std::vector<std::pair<kv_process_key, kv_process>> Identities::table() const {
  std::vector<std::pair<kv_process_key, kv_process>> out;
  const int procs = loaded_.maps().procs;
  kv_process_key key{};
  for (const kv_process_key* previous = nullptr; bpf_map_get_next_key(procs, previous, &key) == 0;
       previous = &out.back().first) {
    const auto process = look_up(procs, key);
    out.emplace_back(key, process.value_or(kv_process{}));
  }
  return out;
}

std::vector<std::pair<ProcessKey, SlotIdentity>> Identities::processes() const {
  std::vector<std::pair<ProcessKey, SlotIdentity>> out;
  for (const auto& [key, process] : table()) {
    if (process.id.generation == 0 || (process.flags & KV_PROCESS_FOLLOWS) != 0) continue;
    out.emplace_back(ProcessKey{.tgid = key.tgid, .start_ticks = key.start_ticks}, from_kernel(process.id));
  }
  return out;
}

}  // namespace kvmscope::bpf
