// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* vCPU exits of KVM: how often and why a vCPU left its guest, and how long the host's kernel, or QEMU, took
 * until it went back in. An object of its own, that shares every map with the other one, because its
 * tracepoints are those of modules that may come later. */
#include "programs.bpf.h"
/* the maps, then what uses them */
#include "account.bpf.h"
#include "identity.bpf.h"
#include "kvm_exits.bpf.h"

/* The current thread, if it is a VM's. */
KV_INLINE struct kv_task* this_vcpu(void) {
  __u32 tgid = bpf_get_current_pid_tgid() >> 32;

  if (!is_vm(tgid)) return 0;
  struct task_struct* task = bpf_get_current_task_btf();
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, 0);
  if (!kept || !(kept->flags & KV_TASK_BASED) || !refresh(task, kept)) return 0;
  return kept;
}

KV_INLINE void go_to(struct kv_task* kept, enum kv_place place, __u64 now_ns) {
  kept->since_ns = now_ns;
  kept->place = place;
}

KV_INLINE void count_exit(struct kv_task* kept, __u32 reason) {
  struct kv_counter* cell = counter_cell(kept->id, KV_VCPU_EXITS, kept->vcpu, reason);

  if (cell) __sync_fetch_and_add(&cell->count, 1);
}

/* The exit counts at once: one that lasts is there at every reading. Its time comes with the next entry. */
KV_INLINE void leave_guest(__u32 reason, __u32 isa) {
  struct kv_task* kept = this_vcpu();

  if (!kept || kept->thread != KV_THREAD_VCPU) return;
  kept->exit = reason;
  kept->isa = isa;
  kept->spent_ns = 0;
  count_exit(kept, reason);
  go_to(kept, KV_PLACE_KERNEL, bpf_ktime_get_ns());
}

SEC("tp_btf/kvm_exit")
int BPF_PROG(kv_exit_vcpu, struct kvm_vcpu* vcpu, __u32 isa) {
  if (vcpu) leave_guest(exit_of_vcpu(vcpu, isa), isa);
  return 0;
}

/* Before 0a62a0319abb (5.16) the reason came first. */
SEC("tp_btf/kvm_exit")
int BPF_PROG(kv_exit_reason, __u32 reason, struct kvm_vcpu* vcpu, __u32 isa) {
  if (vcpu) leave_guest(isa == KVM_ISA_VMX ? vmx_exit(reason) : svm_exit(reason, false), isa);
  return 0;
}

SEC("tp_btf/kvm_userspace_exit")
int BPF_PROG(kv_userspace_exit) {
  struct kv_task* kept = this_vcpu();

  if (!kept || kept->place != KV_PLACE_KERNEL) return 0;
  __u64 now_ns = bpf_ktime_get_ns();
  leave_place(kept, now_ns - kept->since_ns);
  struct kv_counter* cell = counter_cell(kept->id, KV_VCPU_EMULATION, kept->vcpu, 0);
  if (cell) __sync_fetch_and_add(&cell->count, 1);
  go_to(kept, KV_PLACE_QEMU, now_ns);
  return 0;
}

KV_INLINE void count_one_halt(struct kv_task* kept, __u32 kind, __u64 now_ns, bool first) {
  __u64 grown_ns = now_ns - kept->halt_ns[kind];

  kept->halt_ns[kind] = now_ns;
  if (first || !grown_ns) return;
  struct kv_counter* cell = counter_cell(kept->id, KV_VCPU_HALT, kept->vcpu, kind);
  if (cell) __sync_fetch_and_add(&cell->sum, grown_ns);
}

/* KVM's own totals of a vCPU's halts, taken forward after each one. */
static __noinline void count_halt(struct kvm_vcpu* vcpu, struct kv_task* kept, bool first) {
  if (!bpf_core_field_exists(vcpu->stat.generic.halt_wait_ns)) return;
  count_one_halt(kept, KV_HALT_BLOCKED, vcpu->stat.generic.halt_wait_ns, first);
  count_one_halt(kept, KV_HALT_POLLED, vcpu->stat.generic.halt_poll_success_ns, first);
  count_one_halt(kept, KV_HALT_POLLED_IN_VAIN, vcpu->stat.generic.halt_poll_fail_ns, first);
}

SEC("tp_btf/kvm_entry")
int BPF_PROG(kv_entry, struct kvm_vcpu* vcpu) {
  if (!vcpu) return 0;
  struct kv_task* kept = this_vcpu();
  if (!kept) return 0;
  if (!(kept->flags & KV_TASK_ENTERED)) {
    /* Whatever it is called: this thread is a vCPU. */
    count_time(bpf_get_current_task_btf(), kept);
    kept->vcpu = vcpu->vcpu_id;
    kept->thread = KV_THREAD_VCPU;
    __sync_fetch_and_or(&kept->flags, KV_TASK_ENTERED);
    count_halt(vcpu, kept, true);
  }
  if (kept->place == KV_PLACE_GUEST) {
    /* Older SVM has no kvm_exit where it goes back in on its fast path: the time is not told from the
     * guest's. */
    if (kept->isa) count_exit(kept, exit_of_vcpu(vcpu, kept->isa));
    return 0;
  }
  if (kept->exit == KV_EXIT_HLT) count_halt(vcpu, kept, false);
  leave_place(kept, bpf_ktime_get_ns() - kept->since_ns);
  return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
