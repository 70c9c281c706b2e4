/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which slot does the current task belong to? */
#ifndef KVMSCOPE_BPF_IDENTITY_BPF_H
#define KVMSCOPE_BPF_IDENTITY_BPF_H

#include "maps.bpf.h"

#define NS_PER_TICK 10000000ULL /* USER_HZ is 100: nsec_to_clock_t() */

KV_INLINE bool is_vm(__u32 tgid) {
  return tgid < KV_TGIDS && (*(volatile __u64*)&vm_tgids[(tgid / 64) % (KV_TGIDS / 64)] >> (tgid % 64)) & 1;
}

KV_INLINE void mark_vm(__u32 tgid) {
  if (tgid < KV_TGIDS) __sync_fetch_and_or(&vm_tgids[(tgid / 64) % (KV_TGIDS / 64)], 1ULL << (tgid % 64));
}

KV_INLINE void unmark_vm(__u32 tgid) {
  if (tgid < KV_TGIDS) __sync_fetch_and_and(&vm_tgids[(tgid / 64) % (KV_TGIDS / 64)], ~(1ULL << (tgid % 64)));
}

KV_INLINE void forget_resolved(__u32 tgid) {
  __sync_fetch_and_add(&versions[tgid % KV_VERSIONS], 1);
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

static __noinline bool resolve_slowly(struct task_struct* task, __u32 version, struct kv_identity* id) {
  struct kv_process_key key;
  struct kv_task* kept;

  process_key(task, &key);
  struct kv_process* process = bpf_map_lookup_elem(&procs, &key);
  if (process) {
    *id = process->id;
  } else {
    struct kv_identity* bound = bound_cgroup(task);
    if (!bound) return false;
    *id = *bound;
  }
  kept = bpf_task_storage_get(&task_id, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  if (!kept) {
    count_stat(KV_STAT_STORAGE_FAILED);
    return true;
  }
  /* Nobody else writes this task's storage; an interrupt's program does not resolve. */
  kept->id = *id;
  kept->version = version;
  return true;
}

/* Precondition: the current task is a VM's. The host's slot if it (still) belongs to none; that is not kept.
 */
KV_INLINE void resolve_current(__u32 tgid, struct kv_identity* id) {
  struct task_struct* task = (struct task_struct*)bpf_get_current_task_btf();
  __u32 version = *(volatile __u32*)&versions[tgid % KV_VERSIONS];
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, 0);

  if (kept && kept->version == version && kept->id.generation) {
    *id = kept->id;
    return;
  }
  if (resolve_slowly(task, version, id)) return;
  count_stat(KV_STAT_UNATTRIBUTED);
  id->slot = 0;
  id->generation = 1; /* the host's maps are installed once */
}

#endif
