// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bpf/abi.h"
#include "bpf/kvm_programs.h"
#include "bpf/slot_maps.h"
#include "bpf/tracer.h"
#include "hostd/core/result.h"

struct btf;
struct btf_param;
struct programs;
struct bpf_program;
struct bpf_link;

namespace kvmscope::bpf {

/// The object in the kernel: programs, maps and mapped globals. Detaches and unloads with its owner.
class Loaded {
 public:
  struct Options {
    std::uint32_t max_slots = 0;
    std::uint32_t max_tenants = 0;
    std::uint32_t max_cgroups = 0;
    IdentityHook identity_hook = IdentityHook::automatic;
    std::vector<std::string> qemu_names;
  };
  /// Loads, attaches nothing.
  static core::Result<std::unique_ptr<Loaded>> load(const Options& options);
  ~Loaded();
  Loaded(const Loaded&) = delete;
  Loaded& operator=(const Loaded&) = delete;

  /// Attaches all that this kernel needs, what ends requests before what begins them.
  core::Result<void> attach();
  core::Result<void> attach_bio_programs();
  /// Loads the programs for KVM, if it is here and they are not loaded. True if that happened now.
  core::Result<bool> attach_kvm();
  /// Runs kv_settle once, where this kernel could load it (bpf_loop: 5.17).
  void settle() const;
  /// Runs kv_threads once over all threads.
  void count_threads() const;

  struct Maps {
    int counters = -1;
    int histograms = -1;
    int events = -1;
    int spares = -1;
    int procs = -1;
    int cgroups = -1;
    int carry_overflow = -1;
    int bios = -1;
    int nics = -1;
  };
  const Maps& maps() const { return maps_; }
  /// As mapped here: shared with the programs as they run, so each access is atomic.
  kv_globals& globals() const;
  kv_slot_info& slot_info(std::uint32_t slot) const;
  std::uint64_t ring_drops(std::uint32_t tenant_index) const;
  /// Places of all queues known so far, in use or not.
  std::span<const kv_carry> carries() const;
  IdentityHook identity_hook() const { return identity_hook_; }
  std::vector<ProgramInfo> programs() const;

 private:
  struct SkeletonDeleter {
    void operator()(::programs* skeleton) const;
  };
  Loaded() = default;
  core::Result<void> configure(const Options& options);
  core::Result<void> map_arrays(const Options& options);
  core::Result<void> attach_one(bpf_program* program);

  std::unique_ptr<::programs, SkeletonDeleter> skeleton_;
  std::map<std::string, std::string, std::less<>> why_not_;  ///< by program
  std::map<std::string, bpf_link*, std::less<>> links_;
  std::unique_ptr<KvmPrograms> kvm_;
  std::string why_no_kvm_ = "not looked for yet";
  IdentityHook identity_hook_ = IdentityHook::automatic;
  Maps maps_;
  MapView slot_info_;
  MapView ring_drops_;
  MapView carries_;
};

/// A program's name and what the kernel says of it.
ProgramInfo figures_of(const bpf_program* program);

/// True if this tracepoint is in the running kernel's BTF.
bool kernel_has_tracepoint(const std::string& name);

/// Its arguments; empty if these types do not have it.
std::span<const btf_param> tracepoint_arguments(const btf* types, const std::string& name);

}  // namespace kvmscope::bpf
