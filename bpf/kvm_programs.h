// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bpf/tracer.h"
#include "hostd/core/result.h"

struct kvm_programs;
struct bpf_object;
struct bpf_link;
struct bpf_program;

namespace kvmscope::bpf {

/// The programs at KVM's tracepoints, on the maps of the other ones. Detaches and unloads with its owner.
class KvmPrograms {
 public:
  /// KVM and a processor's module are loaded, with type information.
  static bool kvm_is_here();
  /// Loads and attaches; `shared` is the object whose maps they use.
  static core::Result<std::unique_ptr<KvmPrograms>> load(bpf_object* shared);
  ~KvmPrograms();
  KvmPrograms(const KvmPrograms&) = delete;
  KvmPrograms& operator=(const KvmPrograms&) = delete;

  std::vector<ProgramInfo> programs() const;
  /// The same while they are not loaded, for this reason.
  static std::vector<ProgramInfo> absent(const std::string& why);

 private:
  KvmPrograms() = default;
  struct SkeletonDeleter {
    void operator()(::kvm_programs* skeleton) const;
  };
  std::unique_ptr<::kvm_programs, SkeletonDeleter> skeleton_;
  std::map<std::string, bpf_link*, std::less<>> links_;
};

}  // namespace kvmscope::bpf
