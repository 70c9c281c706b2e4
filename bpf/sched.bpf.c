// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* CPU time of a VM's threads, and how long they waited for a CPU.
 *
 * Totals are the kernel's own, read by the task iterator at each reading; the switch of a dying thread takes
 * its last ones. The hooks at switches serve distributions and counts alone: what they see of a thread of no
 * VM is one bit. */
#include "account.bpf.h"
#include "identity.bpf.h"

#define TASK_DEAD 0x80 /* include/linux/sched.h */
#define PF_EXITING 0x4

/* --- totals */

/* What was somebody's and is nobody's now: what it does until somebody has it is nobody's. (A process that
 * ends loses its mark before its threads' last words.) */
KV_INLINE void forget(struct task_struct* task) {
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, 0);

  if (!kept || !kept->id.generation || kept->dying.generation || task->flags & PF_EXITING) return;
  *(volatile __u64*)&kept->id = 0;
  kept->flags = 0;
}

/* A thread older than its being watched begins here. */
static __noinline void meet(struct task_struct* task, struct kv_task* kept) {
  struct kv_vcpu* vcpu = bpf_task_storage_get(&vcpus, task, 0, 0);
  char name[KV_COMM_BYTES] = {};

  if (vcpu) {
    vcpu->place = KV_PLACE_GUEST;
    __builtin_memset(vcpu->exits, 0, sizeof(vcpu->exits));
    __builtin_memset(&vcpu->emulation, 0, sizeof(vcpu->emulation));
    __builtin_memset(vcpu->halted_ns, 0, sizeof(vcpu->halted_ns));
  }

  bpf_probe_read_kernel(name, sizeof(name), task->comm);
  classify(kept, name);
  begin_time(task, kept);
}

/* Run by the daemon before a reading. */
SEC("iter/task")
int kv_threads(struct bpf_iter__task* context) {
  struct task_struct* task = context->task;

  if (!task) return 0;
  if (!is_vm(task->tgid)) {
    forget(task);
    return 0;
  }
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  if (!kept) {
    count_stat(KV_STAT_STORAGE_FAILED);
    return 0;
  }
  refresh(task, kept);
  if (!(kept->flags & KV_TASK_BASED)) {
    meet(task, kept);
    return 0;
  }
  count_time(task, kept);
  if (kept->thread == KV_THREAD_VCPU) count_exits(task, kept);
  return 0;
}

/* --- switches */

KV_INLINE __u32 state_of(struct task_struct* task) {
  struct task_struct___5_13* old = (void*)task;

  if (bpf_core_field_exists(task->__state)) return task->__state;
  return BPF_CORE_READ(old, state);
}

/* One time on a CPU is over: how long had the vCPU waited for it? (The kernel adds the wait to the total when
 * it comes onto the CPU, after this tracepoint.) */
KV_INLINE void end_slice(struct task_struct* task, struct kv_task* kept, bool preempted) {
  __u64 delay_ns = task->sched_info.run_delay;
  __u64 waited_ns = delay_ns - kept->slice_delay_ns;
  __u32 cpu = bpf_get_smp_processor_id() + 1;
  bool moved = kept->cpu && kept->cpu != cpu;
  __u32 kind = 0;

  kept->slice_delay_ns = delay_ns;
  kept->cpu = cpu;
  if (preempted || moved) {
    struct kv_counter* cell = counter_cell(kept->id, KV_VCPU_SWITCHES, kept->vcpu, 0);
    if (cell && preempted) __sync_fetch_and_add(&cell->count, 1);
    if (cell && moved) __sync_fetch_and_add(&cell->sum, 1);
  }
  void* inner = bpf_map_lookup_elem(&histograms, &kept->id.slot);
  if (!inner) return;
  struct kv_header* headers = bpf_map_lookup_elem(inner, &kind);
  if (!headers || headers->generation != kept->id.generation) return;
  __u32 index = cell_index(&headers[KV_VCPU_DELAY], kept->vcpu, 0);
  struct kv_histogram* cell = bpf_map_lookup_elem(inner, &index);
  if (cell) add_delay(cell, waited_ns);
}

/* A vCPU that comes back onto a CPU on the host's side of its exit: what it does there costs again. */
KV_INLINE void resume(struct task_struct* task) {
  struct kv_vcpu* vcpu = bpf_task_storage_get(&vcpus, task, 0, 0);

  if (vcpu && vcpu->place != KV_PLACE_GUEST) vcpu->since_ns = bpf_ktime_get_ns();
}

KV_INLINE void suspend(struct task_struct* task) {
  struct kv_vcpu* vcpu = bpf_task_storage_get(&vcpus, task, 0, 0);

  if (!vcpu || vcpu->place == KV_PLACE_GUEST) return;
  vcpu->spent_ns += bpf_ktime_get_ns() - vcpu->since_ns;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(kv_switch, bool preempt, struct task_struct* prev, struct task_struct* next) {
  if (!prev || !next) return 0;
  __u32 state = state_of(prev);

  if (*(volatile __u32*)&globals.kvm_live && is_vm(next->tgid)) resume(next);

  /* A process loses its mark at its exit, before its threads' last switch. */
  if (!(state & TASK_DEAD) && !is_vm(prev->tgid)) return 0;
  struct kv_task* kept = bpf_task_storage_get(&task_id, prev, 0, 0);
  if (!kept) return 0;
  refresh(prev, kept);
  if (kept->thread == KV_THREAD_VCPU) suspend(prev);
  if (state & TASK_DEAD) end_death(prev, kept);
  if (kept->thread == KV_THREAD_VCPU && kept->flags & KV_TASK_BASED && kept->id.generation)
    end_slice(prev, kept, preempt || !state);
  return 0;
}
