// SPDX-License-Identifier: Apache-2.0
#include "bpf/kvm_programs.h"

#include "bpf/abi.h"
// its layouts are the ABI's
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <kvm_programs.skel.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>

#include "bpf/libbpf_log.h"
#include "bpf/loaded.h"

namespace kvmscope::bpf {
namespace {

using core::Error;
using core::ErrorCode;
using core::fail;
using core::Result;

constexpr const char* kNotNeeded = "not needed: this kernel's kvm_exit has other arguments";

/// kvm_exit had the reason in front until 5.16.
bool exit_has_reason() {
  struct Deleter {
    void operator()(btf* types) const { btf__free(types); }
  };
  const std::unique_ptr<btf, Deleter> kernel(btf__load_vmlinux_btf());
  const std::unique_ptr<btf, Deleter> module(btf__load_module_btf("kvm", kernel.get()));
  return tracepoint_arguments(module ? module.get() : kernel.get(), "kvm_exit").size() == 3;
}

/// The map of the other object that this one stands for: of the same name, or the one of the globals.
bpf_map* counterpart(bpf_object* shared, const bpf_map* map) {
  const std::string_view name = bpf_map__name(map);
  bpf_map* other = nullptr;
  bpf_object__for_each_map(other, shared) {
    const std::string_view there = bpf_map__name(other);
    if (there == name || (there.ends_with(".bss") && name.ends_with(".bss"))) return other;
  }
  return nullptr;
}

Result<void> share_maps(bpf_object* mine, bpf_object* shared) {
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, mine) {
    const std::string_view name = bpf_map__name(map);
    if (name.ends_with(".rodata")) continue;
    bpf_map* other = counterpart(shared, map);
    if (other == nullptr || bpf_map__value_size(other) != bpf_map__value_size(map)) {
      return fail(ErrorCode::system, "the objects do not agree about the map " + std::string(name));
    }
    if (const int error = bpf_map__reuse_fd(map, bpf_map__fd(other)); error != 0) {
      return fail(Error::from_errno("share the map " + std::string(name), -error));
    }
  }
  return {};
}

}  // namespace

void KvmPrograms::SkeletonDeleter::operator()(::kvm_programs* skeleton) const {
  kvm_programs__destroy(skeleton);
}

KvmPrograms::~KvmPrograms() {
  for (const auto& [name, link] : links_) bpf_link__destroy(link);
}

bool KvmPrograms::kvm_is_here() {
  if (kernel_has_tracepoint("kvm_exit")) return true;  // built into the kernel
  const bool processor =
      ::access("/sys/kernel/btf/kvm_amd", R_OK) == 0 || ::access("/sys/kernel/btf/kvm_intel", R_OK) == 0;
  return processor && ::access("/sys/kernel/btf/kvm", R_OK) == 0;
}

Result<std::unique_ptr<KvmPrograms>> KvmPrograms::load(bpf_object* shared) {
  const LibbpfLog log;
  std::unique_ptr<KvmPrograms> kvm(new KvmPrograms());
  kvm->skeleton_.reset(kvm_programs__open());
  if (!kvm->skeleton_) return fail(Error::from_errno("open the programs for KVM").wrap(log.last_lines(4)));
  const auto& all = kvm->skeleton_->progs;
  bpf_program__set_autoload(exit_has_reason() ? all.kv_exit_vcpu : all.kv_exit_reason, false);
  if (auto shares = share_maps(kvm->skeleton_->obj, shared); !shares) return fail(shares.error());
  if (const int error = kvm_programs__load(kvm->skeleton_.get()); error != 0) {
    return fail(ErrorCode::system, "load the programs for KVM: " + std::string(std::strerror(-error)) +
                                       "; the kernel says: " + log.last_lines(12));
  }
  for (bpf_program* program : {all.kv_entry, all.kv_userspace_exit, all.kv_exit_vcpu, all.kv_exit_reason}) {
    if (!bpf_program__autoload(program)) continue;
    const std::string name = bpf_program__name(program);
    bpf_link* link = bpf_program__attach(program);
    if (link == nullptr) return fail(Error::from_errno("attach " + name).wrap(log.last_lines(3)));
    kvm->links_[name] = link;
  }
  return kvm;
}

std::vector<ProgramInfo> KvmPrograms::programs() const {
  std::vector<ProgramInfo> out;
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, skeleton_->obj) {
    ProgramInfo& info = out.emplace_back(figures_of(program));
    info.attached = links_.contains(info.name);
    if (!info.attached) info.why_not = kNotNeeded;
  }
  return out;
}

std::vector<ProgramInfo> KvmPrograms::absent(const std::string& why) {
  std::vector<ProgramInfo> out;
  for (const char* name : {"kv_entry", "kv_exit_vcpu", "kv_exit_reason", "kv_userspace_exit"}) {
    out.push_back({.name = name, .attached = false, .why_not = why});
  }
  return out;
}

}  // namespace kvmscope::bpf
