// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* vCPU exits of KVM: how often and why a vCPU left its guest, and how long the host's kernel, or QEMU, took
 * until it went back in. An object of its own, that shares every map with the other one, because its
 * tracepoints are those of modules that may come later. */
#include "programs.bpf.h"
/* the maps, then what uses them */
#include "account.bpf.h"
#include "identity.bpf.h"
#include "kvm_exits.bpf.h"

/* The vCPU whose thread this is; none before its first entry. */
KV_INLINE struct kv_vcpu* this_vcpu(void) {
  return bpf_task_storage_get(&vcpus, bpf_get_current_task_btf(), 0, 0);
}

KV_INLINE void count_exit(struct kv_vcpu* vcpu, __u32 reason) {
  if (reason >= KV_EXITS) return;
  vcpu->exit = reason;
  __sync_fetch_and_add(&vcpu->exits[reason].count, 1);
}

/* The exit counts at once: one that lasts is there at every reading. Its time comes with the next entry. */
KV_INLINE void leave_guest(struct kv_vcpu* vcpu, __u32 reason, __u32 isa) {
  count_exit(vcpu, reason);
  vcpu->isa = isa;
  vcpu->spent_ns = 0;
  vcpu->since_ns = bpf_ktime_get_ns();
  vcpu->place = KV_PLACE_KERNEL;
}

SEC("tp_btf/kvm_exit")
int BPF_PROG(kv_exit_vcpu, struct kvm_vcpu* kvm, __u32 isa) {
  struct kv_vcpu* vcpu = this_vcpu();

  if (vcpu && kvm) leave_guest(vcpu, exit_of_vcpu(kvm, isa), isa);
  return 0;
}

/* Before 0a62a0319abb (5.16) the reason came first. */
SEC("tp_btf/kvm_exit")
int BPF_PROG(kv_exit_reason, __u32 reason, struct kvm_vcpu* kvm, __u32 isa) {
  struct kv_vcpu* vcpu = this_vcpu();

  if (vcpu) leave_guest(vcpu, isa == KVM_ISA_VMX ? vmx_exit(reason) : svm_exit(reason, false), isa);
  return 0;
}

KV_INLINE void count_one_halt(struct kv_vcpu* vcpu, __u32 kind, __u64 now_ns, bool first) {
  if (!first) __sync_fetch_and_add(&vcpu->halted_ns[kind], now_ns - vcpu->halt_ns[kind]);
  vcpu->halt_ns[kind] = now_ns;
}

/* KVM's own totals of a vCPU's halts, taken forward after each one. */
static __noinline void count_halt(struct kv_vcpu* vcpu, bool first) {
  struct kvm_vcpu* kvm = (void*)vcpu->kvm;

  if (!bpf_core_field_exists(kvm->stat.generic.halt_wait_ns)) return;
  count_one_halt(vcpu, KV_HALT_BLOCKED, BPF_CORE_READ(kvm, stat.generic.halt_wait_ns), first);
  count_one_halt(vcpu, KV_HALT_POLLED, BPF_CORE_READ(kvm, stat.generic.halt_poll_success_ns), first);
  count_one_halt(vcpu, KV_HALT_POLLED_IN_VAIN, BPF_CORE_READ(kvm, stat.generic.halt_poll_fail_ns), first);
}

SEC("tp_btf/kvm_userspace_exit")
int BPF_PROG(kv_userspace_exit) {
  struct kv_vcpu* vcpu = this_vcpu();

  if (!vcpu || vcpu->place != KV_PLACE_KERNEL) return 0;
  if (vcpu->exit == KV_EXIT_HLT) count_halt(vcpu, false); /* suspended, or killed, in the midst of it */
  __u64 now_ns = bpf_ktime_get_ns();
  leave_place(vcpu, now_ns - vcpu->since_ns);
  __sync_fetch_and_add(&vcpu->emulation.count, 1);
  vcpu->since_ns = now_ns;
  vcpu->place = KV_PLACE_QEMU;
  return 0;
}

/* A thread's first entry: whatever it is called, it is a vCPU, if it is a VM's at all. */
static __noinline void meet_vcpu(struct kvm_vcpu* kvm) {
  struct task_struct* task = bpf_get_current_task_btf();
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, 0);

  if (!kept || !(kept->flags & KV_TASK_BASED) || !refresh(task, kept)) return;
  struct kv_vcpu* vcpu = bpf_task_storage_get(&vcpus, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  if (!vcpu) {
    count_stat(KV_STAT_STORAGE_FAILED);
    return;
  }
  count_time(task, kept);
  /* Its name says which one (to KVM it is an APIC's id, with gaps); without a name, the order of their
   * making. */
  if (kept->thread != KV_THREAD_VCPU)
    kept->vcpu = bpf_core_field_exists(kvm->vcpu_idx) ? kvm->vcpu_idx : kvm->vcpu_id;
  kept->thread = KV_THREAD_VCPU;
  vcpu->kvm = (__u64)kvm;
  count_halt(vcpu, true);
}

SEC("tp_btf/kvm_entry")
int BPF_PROG(kv_entry, struct kvm_vcpu* kvm) {
  struct kv_vcpu* vcpu = this_vcpu();

  if (!kvm) return 0;
  if (!vcpu) {
    if (is_vm(bpf_get_current_pid_tgid() >> 32)) meet_vcpu(kvm);
    return 0;
  }
  if (vcpu->place == KV_PLACE_GUEST) {
    /* Older SVM has no kvm_exit where it goes back in on its fast path: the time is not told from the
     * guest's. */
    if (vcpu->isa) count_exit(vcpu, exit_of_vcpu(kvm, vcpu->isa));
    return 0;
  }
  if (vcpu->exit == KV_EXIT_HLT) count_halt(vcpu, false);
  leave_place(vcpu, bpf_ktime_get_ns() - vcpu->since_ns);
  return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
