// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <span>
#include <utility>
#include <vector>

#include "bpf/loaded.h"
#include "hostd/core/ids.h"
#include "hostd/core/result.h"

namespace kvmscope::bpf {

/// Which process and which cgroup belongs to which slot: the daemon's half of what the programs resolve.
/// Everything here is short system calls on hashes and stores to mapped memory.
class Identities {
 public:
  explicit Identities(Loaded& loaded) : loaded_(loaded) {}

  core::Result<void> offer_spare(core::SlotIdentity identity);
  std::uint32_t spares() const;
  core::Result<core::SlotIdentity> claim(core::ProcessKey process);
  core::Result<core::SlotIdentity> rebind(core::ProcessKey process);
  core::Result<void> bind(core::ProcessKey process, std::span<const std::uint64_t> cgroup_ids,
                          std::span<const core::ProcessKey> helpers);
  void unbind(core::ProcessKey process);
  /// Those that hold a slot themselves; their children and helpers are left out.
  std::vector<std::pair<core::ProcessKey, core::SlotIdentity>> processes() const;

 private:
  struct Bound {
    std::vector<std::uint64_t> cgroup_ids;
    std::vector<core::ProcessKey> helpers;
  };
  core::Result<kv_identity> pop_spare();
  std::vector<std::pair<kv_process_key, kv_process>> table() const;
  void mark(std::uint32_t tgid, bool vm);
  bool marked(std::uint32_t tgid) const;
  void forget_all_resolved();
  void release(const Bound& bound);
  void drop_children(kv_identity identity);

  Loaded& loaded_;
  std::map<core::ProcessKey, Bound> bound_;
};

}  // namespace kvmscope::bpf
