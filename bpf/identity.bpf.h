/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which slot does a task belong to, and how much of its CPU time has been counted there? */
#ifndef KVMSCOPE_BPF_IDENTITY_BPF_H
#define KVMSCOPE_BPF_IDENTITY_BPF_H

#include "account.bpf.h"

#define NS_PER_TICK 10000000ULL /* USER_HZ is 100: nsec_to_clock_t() */

KV_INLINE bool is_vm(__u32 tgid) {
  return tgid < KV_TGIDS &&
         (*(volatile __u64*)&globals.vm_tgids[(tgid / 64) % (KV_TGIDS / 64)] >> (tgid % 64)) & 1;
}

KV_INLINE void mark_vm(__u32 tgid) {
  if (tgid < KV_TGIDS)
    __sync_fetch_and_or(&globals.vm_tgids[(tgid / 64) % (KV_TGIDS / 64)], 1ULL << (tgid % 64));
}

/* Whether it was marked. */
KV_INLINE bool unmark_vm(__u32 tgid) {
  __u64 bit = 1ULL << (tgid % 64);

  if (tgid >= KV_TGIDS) return false;
  return __sync_fetch_and_and(&globals.vm_tgids[(tgid / 64) % (KV_TGIDS / 64)], ~bit) & bit;
}

KV_INLINE void forget_resolved(__u32 tgid) {
  __sync_fetch_and_add(&globals.versions[tgid % KV_VERSIONS], 1);
}

KV_INLINE void process_key(struct task_struct* task, struct kv_process_key* key) {
  key->tgid = task->tgid;
  key->pad = 0;
  key->start_ticks = task->group_leader->start_boottime / NS_PER_TICK;
}

/* The slot bound to the task's cgroup in the unified hierarchy, or to one above it: a child cgroup may be
 * younger than the daemon's list. */
KV_INLINE struct kv_identity* bound_cgroup(struct task_struct* task) {
  struct cgroup* cgroup = task->cgroups->dfl_cgrp;

  for (int level = 0; level < 5 && cgroup; level++) {
    __u64 id = cgroup->kn->id;
    struct kv_identity* bound = bpf_map_lookup_elem(&cgroups, &id);
    if (bound) return bound;
    struct cgroup_subsys_state* parent = cgroup->self.parent;
    if (!parent) break;
    cgroup = parent->cgroup;
  }
  return 0;
}

/* Whose the task is by the daemon's tables. False: nobody's. */
static __noinline bool find_identity(struct task_struct* task, struct kv_identity* id, bool* main) {
  struct kv_process_key key;

  process_key(task, &key);
  struct kv_process* process = bpf_map_lookup_elem(&procs, &key);
  if (process) {
    *id = process->id;
    *main = !(process->flags & KV_PROCESS_FOLLOWS);
    return true;
  }
  struct kv_identity* bound = bound_cgroup(task);
  if (!bound) return false;
  *id = *bound;
  *main = false;
  return true;
}

/* --- totals of a thread
 * The kernel's own (sum_exec_runtime, run_delay, maj_flt), taken forward at each reading and when the thread
 * dies. Nothing is added up at a switch. */

/* How much the total has grown since it was last counted, by whomever: each ns is one caller's. */
KV_INLINE __u64 take_growth(__u64* counted, __u64 now) {
  for (int i = 0; i < 4; i++) {
    __u64 before = *(volatile __u64*)counted;
    if (now <= before) return 0;
    if (__sync_val_compare_and_swap(counted, before, now) == before) return now - before;
  }
  return 0; /* others count it */
}

static __noinline void count_time(struct task_struct* task, struct kv_task* kept) {
  struct kv_identity id = kept->id;

  if (!(kept->flags & KV_TASK_BASED) || !id.generation) return; /* whoever gets it gets it all */
  __u64 run_ns = take_growth(&kept->run_ns, task->se.sum_exec_runtime);
  __u64 delay_ns = take_growth(&kept->delay_ns, task->sched_info.run_delay);
  __u64 major_faults = take_growth(&kept->major_faults, task->maj_flt);
  if (!run_ns && !delay_ns && !major_faults) return;
  __u32 thread = kept->thread;
  if (thread == KV_THREAD_EMULATOR && !(kept->flags & KV_TASK_MAIN)) thread = KV_THREAD_OTHER;
  bool vcpu = thread == KV_THREAD_VCPU;
  struct kv_counter* cell =
      counter_cell(id, vcpu ? KV_VCPU_TIME : KV_THREAD_TIME, vcpu ? kept->vcpu : 0, vcpu ? 0 : thread);
  if (!cell) {
    __sync_fetch_and_add(&globals.stats[KV_STAT_LATE_TIME], run_ns);
    return;
  }
  __sync_fetch_and_add(&cell->count, run_ns);
  __sync_fetch_and_add(&cell->sum, delay_ns);
  if (!major_faults) return;
  cell = counter_cell(id, KV_PAGING, 0, 0);
  if (cell) __sync_fetch_and_add(&cell->count, major_faults);
}

KV_INLINE bool starts_with(const char* name, const char* start, int length) {
  for (int i = 0; i < length; i++)
    if (name[i] != start[i]) return false;
  return true;
}

/* QEMU names its threads, if libvirt asks it to (-name debug-threads=on): "CPU 3/KVM", "IO iothread1";
 * the kernel names vhost's workers "vhost-PID". */
KV_INLINE void classify(struct kv_task* kept, const char* comm) {
  __u32 number = 0;
  __u8 thread = KV_THREAD_EMULATOR;

  if (starts_with(comm, "IO ", 3) &&
      !starts_with(comm + 3, "mon_iothread", 12)) { /* QEMU's own, of its monitors */
    thread = KV_THREAD_IOTHREAD;
  } else if (starts_with(comm, "vhost-", 6)) {
    thread = KV_THREAD_VHOST;
  } else if (starts_with(comm, "CPU ", 4) && comm[4] != '/') {
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

/* What the task has used so far is nobody's: a new one has used nothing. */
KV_INLINE void begin_time(struct task_struct* task, struct kv_task* kept) {
  kept->run_ns = task->se.sum_exec_runtime;
  kept->delay_ns = task->sched_info.run_delay;
  kept->slice_delay_ns = kept->delay_ns;
  kept->major_faults = task->maj_flt;
  barrier();
  __sync_fetch_and_or(&kept->flags, KV_TASK_BASED);
}

/* From now on the task's time is counted. A new thread still has its maker's name, which says nothing, unless
 * the kernel named it (vhost's since 6.4). */
static __noinline __attribute__((unused)) void begin_thread(struct task_struct* task) {
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

  if (!kept) {
    count_stat(KV_STAT_STORAGE_FAILED);
    return;
  }
  if (kept->flags & KV_TASK_BASED) return;
  kept->thread = KV_THREAD_EMULATOR;
  if (starts_with(task->comm, "vhost-", 6)) kept->thread = KV_THREAD_VHOST;
  begin_time(task, kept);
}

__noinline int take_counter(struct kv_identity* id, __u32 kind, __u32 dev, __u32 sub,
                            struct kv_counter* from) {
  if (!id || !from || (!*(volatile __u64*)&from->count && !*(volatile __u64*)&from->sum)) return 0;
  __u64 count = __sync_lock_test_and_set(&from->count, 0);
  __u64 sum = __sync_lock_test_and_set(&from->sum, 0);
  struct kv_counter* cell = counter_cell(*id, kind, dev, sub);
  if (!cell) {
    count_stat(KV_STAT_LATE);
    return 0;
  }
  __sync_fetch_and_add(&cell->count, count);
  __sync_fetch_and_add(&cell->sum, sum);
  return 0;
}

/* What a vCPU has done since it was last counted, at each reading and before its owner changes. */
static __noinline void count_exits(struct task_struct* task, struct kv_task* kept) {
  struct kv_vcpu* vcpu = bpf_task_storage_get(&vcpus, task, 0, 0);

  if (!vcpu || !kept->id.generation) return;
  for (__u32 exit = 0; exit < KV_EXITS; exit++)
    take_counter(&kept->id, KV_VCPU_EXITS, kept->vcpu, exit, &vcpu->exits[exit]);
  take_counter(&kept->id, KV_VCPU_EMULATION, kept->vcpu, 0, &vcpu->emulation);
  for (__u32 halt = 0; halt < KV_HALTS; halt++) {
    if (!*(volatile __u64*)&vcpu->halted_ns[halt]) continue;
    __u64 ns = __sync_lock_test_and_set(&vcpu->halted_ns[halt], 0);
    struct kv_counter* cell = counter_cell(kept->id, KV_VCPU_HALT, kept->vcpu, halt);
    if (cell) __sync_fetch_and_add(&cell->sum, ns);
  }
}

/* A vCPU goes on from where it was, after `here_ns` since it was last put there. */
KV_INLINE void leave_place(struct kv_vcpu* vcpu, __u64 here_ns) {
  __u32 exit = vcpu->exit;
  bool kernel = vcpu->place == KV_PLACE_KERNEL;

  if (exit >= KV_EXITS) return;
  __sync_fetch_and_add(kernel ? &vcpu->exits[exit].sum : &vcpu->emulation.sum, vcpu->spent_ns + here_ns);
  vcpu->place = KV_PLACE_GUEST;
  vcpu->spent_ns = 0;
}

/* Brings what is kept up to date with the daemon's tables. False: the task is nobody's (any more). */
static __noinline bool refresh(struct task_struct* task, struct kv_task* kept) {
  __u32 version = *(volatile __u32*)&globals.versions[(__u32)task->tgid % KV_VERSIONS];
  struct kv_identity id = {};
  bool main = false;

  if (kept->dying.generation) return true;
  if (kept->version == version && kept->id.generation) return true;
  if (!find_identity(task, &id, &main)) return false;
  /* Handed over: its time up to now is the former one's. */
  if (kept->id.generation && kept->id.generation != id.generation) {
    count_time(task, kept);
    if (kept->thread == KV_THREAD_VCPU) count_exits(task, kept);
  }
  *(volatile __u64*)&kept->id = *(__u64*)&id;
  if (main)
    __sync_fetch_and_or(&kept->flags, KV_TASK_MAIN);
  else
    __sync_fetch_and_and(&kept->flags, ~KV_TASK_MAIN);
  barrier();
  kept->version = version;
  return true;
}

/* From a thread's exit until its last switch its slot must be there: what it counts at the last was used up
 * to then, and giving back what its process held can take seconds. */
static __noinline __attribute__((unused)) void begin_death(struct task_struct* task, struct kv_task* kept) {
  struct kv_slot_info* info = info_of(kept->id);
  struct kv_vcpu* vcpu = bpf_task_storage_get(&vcpus, task, 0, 0);

  count_time(task, kept);
  if (vcpu) {
    vcpu->place = KV_PLACE_GUEST; /* what it does from here on is to end */
    count_exits(task, kept);
  }
  if (!info || kept->dying.generation) return;
  __sync_fetch_and_add(&info->dying, 1);
  *(volatile __u64*)&kept->dying = *(__u64*)&kept->id;
}

static __noinline __attribute__((unused)) void end_death(struct task_struct* task, struct kv_task* kept) {
  count_time(task, kept);
  if (kept->thread == KV_THREAD_VCPU) count_exits(task, kept);
  if (!kept->dying.generation) return;
  struct kv_slot_info* info = info_of(kept->dying);
  if (info) __sync_fetch_and_sub(&info->dying, 1);
}

/* --- the current task */

static __noinline bool resolve_slowly(struct task_struct* task, struct kv_identity* id) {
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  bool main;

  if (!kept) {
    count_stat(KV_STAT_STORAGE_FAILED);
    return find_identity(task, id, &main);
  }
  if (!refresh(task, kept)) return false;
  *id = kept->id;
  return true;
}

/* Precondition: the current task is a VM's. The host's slot if it (still) belongs to none; that is not kept.
 */
KV_INLINE void resolve_current(__u32 tgid, struct kv_identity* id) {
  struct task_struct* task = (struct task_struct*)bpf_get_current_task_btf();
  __u32 version = *(volatile __u32*)&globals.versions[tgid % KV_VERSIONS];
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, 0);

  if (kept && kept->version == version && kept->id.generation) {
    *id = kept->id;
    return;
  }
  if (resolve_slowly(task, id)) return;
  count_stat(KV_STAT_UNATTRIBUTED);
  id->slot = 0;
  id->generation = 1; /* the host's maps are installed once */
}

#endif
