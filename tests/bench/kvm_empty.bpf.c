// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Programs on the hooks of a vCPU's exit and entry that do nothing, or one of the things that ours do. */
#include "kvm_exits.bpf.h"
#include "programs.bpf.h"

struct {
  __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct kv_vcpu);
} part_of_task SEC(".maps");

__u64 sink;

SEC("tp_btf/kvm_exit")
int empty_exit(void* context) {
  return 0;
}

SEC("tp_btf/kvm_exit")
int part_storage(void* context) {
  struct kv_vcpu* vcpu =
      bpf_task_storage_get(&part_of_task, bpf_get_current_task_btf(), 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

  if (vcpu) vcpu->place++;
  return 0;
}

SEC("tp_btf/kvm_exit")
int BPF_PROG(part_reason, struct kvm_vcpu* vcpu, __u32 isa) {
  if (vcpu) sink = exit_of_vcpu(vcpu, isa);
  return 0;
}

SEC("tp_btf/kvm_exit")
int part_clock(void* context) {
  sink = bpf_ktime_get_ns();
  return 0;
}

SEC("tp_btf/kvm_entry")
int empty_entry(void* context) {
  return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
