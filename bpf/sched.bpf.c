// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* CPU time of a VM's threads, and how long they waited for a CPU.
 *
 * Totals are the kernel's own, read by the task iterator at each reading; the switch of a dying thread takes
 * its last ones. The hooks at switches serve distributions and counts alone: what they see of a thread of no
 * VM is one bit. */
#include "account.bpf.h"
#include "identity.bpf.h"

#define TASK_DEAD 0x80 /* include/linux/sched.h */

/* --- which thread is it? */

/* QEMU names its threads, if libvirt asks it to (-name debug-threads=on): "CPU 3/KVM", "IO iothread1";
 * the kernel names vhost's workers "vhost-PID". */
KV_INLINE void classify(struct kv_task* kept, const char* comm) {
  __u32 number = 0;
  __u8 thread = KV_THREAD_EMULATOR;

  if (comm[0] == 'I' && comm[1] == 'O' && comm[2] == ' ') {
    thread = KV_THREAD_IOTHREAD;
  } else if (comm[0] == 'v' && comm[1] == 'h' && comm[2] == 'o' && comm[3] == 's' && comm[4] == 't' &&
             comm[5] == '-') {
    thread = KV_THREAD_VHOST;
  } else if (comm[0] == 'C' && comm[1] == 'P' && comm[2] == 'U' && comm[3] == ' ' && comm[4] != '/') {
    for (int i = 4; i < 9; i++) {
      if (comm[i] == '/') {
        if (number < KV_MAX_VCPUS) thread = KV_THREAD_VCPU;
        break;
      }
      if (comm[i] < '0' || comm[i] > '9') break;
      number = number * 10 + (comm[i] - '0');
    }
  }
  if (thread == KV_THREAD_VCPU) kept->vcpu = number;
  kept->thread = thread;
}

SEC("tp_btf/task_rename")
int BPF_PROG(kv_rename, struct task_struct* task, const char* comm) {
  char name[KV_COMM_BYTES] = {};

  if (!task || !is_vm(task->tgid)) return 0;
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, 0);
  if (!kept) return 0;
  bpf_probe_read_kernel_str(name, sizeof(name), comm);
  count_time(task, kept); /* so far it was what it was called */
  classify(kept, name);
  return 0;
}

/* --- totals */

/* A thread older than its being watched begins here. */
static __noinline void meet(struct task_struct* task, struct kv_task* kept) {
  char name[KV_COMM_BYTES] = {};

  bpf_probe_read_kernel(name, sizeof(name), task->comm);
  classify(kept, name);
  begin_time(kept, task->se.sum_exec_runtime, task->sched_info.run_delay);
}

/* Run by the daemon before a reading. */
SEC("iter/task")
int kv_threads(struct bpf_iter__task* context) {
  struct task_struct* task = context->task;

  if (!task || !is_vm(task->tgid)) return 0;
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  if (!kept) {
    count_stat(KV_STAT_STORAGE_FAILED);
    return 0;
  }
  refresh(task, kept);
  if (kept->flags & KV_TASK_BASED)
    count_time(task, kept);
  else
    meet(task, kept);
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
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, 0);

  if (kept && kept->place != KV_PLACE_GUEST) kept->since_ns = bpf_ktime_get_ns();
}

KV_INLINE void suspend(struct kv_task* kept, bool dead) {
  if (kept->place == KV_PLACE_GUEST) return;
  kept->spent_ns += bpf_ktime_get_ns() - kept->since_ns;
  if (dead) leave_place(kept, 0);
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
  if (state & TASK_DEAD) count_time(prev, kept);
  suspend(kept, state & TASK_DEAD);
  if (kept->thread == KV_THREAD_VCPU && kept->flags & KV_TASK_BASED && kept->id.generation)
    end_slice(prev, kept, preempt || !state);
  return 0;
}
