// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* QEMU processes come and go: a new one takes a spare slot before it can do any I/O. */
#include "account.bpf.h"
#include "identity.bpf.h"

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

KV_INLINE void report(__u32 type, const struct kv_process_key* key, struct kv_identity id, __u32 status) {
  struct kv_event_process* record = reserve_event(0, sizeof(*record));

  if (!record) return;
  record->type = type;
  record->status = status;
  record->process = *key;
  record->id = id;
  record->monotonic_ns = bpf_ktime_get_ns();
  bpf_get_current_comm(record->comm, sizeof(record->comm));
  bpf_ringbuf_submit(record, 0);
}

KV_INLINE bool is_qemu(struct linux_binprm* bprm) {
  /* The name of the file itself, which a symbolic link, a script or /dev/fd/N does not hide. */
  __u64 name[KV_NAME_BYTES / 8] = {};
  const unsigned char* text = bprm->file->f_path.dentry->d_name.name;

  bpf_probe_read_kernel_str(name, sizeof(name), text);
  for (int i = 0; i < KV_NAMES; i++) {
    __u64 wrong = 0;
    if (!qemu_names[i].mask[0]) continue;
    for (int word = 0; word < KV_NAME_BYTES / 8; word++)
      wrong |= (name[word] ^ qemu_names[i].text[word]) & qemu_names[i].mask[word];
    if (!wrong) return true;
  }
  return false;
}

/* A spare slot for the process: one insert that must be the first. The loser's spare goes back. */
KV_INLINE void claim_slot(const struct kv_process_key* key) {
  struct kv_process process = {};

  if (bpf_map_pop_elem(&spares, &process.id)) {
    mark_vm(key->tgid); /* counts in the host's slot until the daemon gives it one */
    count_stat(KV_STAT_NO_SPARE);
    report(KV_EVENT_NO_SPARE, key, process.id, 0);
    return;
  }
  long failed = bpf_map_update_elem(&procs, key, &process, BPF_NOEXIST);
  if (failed) {
    if (failed != -17) count_stat(KV_STAT_MAP_ERROR); /* -EEXIST: the daemon was first */
    if (bpf_map_push_elem(&spares, &process.id, 0)) {
      count_stat(KV_STAT_MAP_ERROR);
      __sync_fetch_and_sub(&globals.spare_count, 1);
    }
    mark_vm(key->tgid);
    return;
  }
  __sync_fetch_and_sub(&globals.spare_count, 1);
  forget_resolved(key->tgid);
  mark_vm(key->tgid);
  report(KV_EVENT_CLAIMED, key, process.id, 0);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(kv_exec, struct task_struct* task, int old_pid, struct linux_binprm* bprm) {
  struct kv_process_key key;
  __u32 tgid = task->tgid;
  bool qemu = is_qemu(bprm);

  process_key(task, &key);
  if (!qemu && !is_vm(tgid)) {
    if (!bound_cgroup(task)) return 0;
    mark_vm(tgid); /* a new helper in a VM's cgroup */
    begin_thread(task);
    return 0;
  }
  struct kv_process* known = is_vm(tgid) ? bpf_map_lookup_elem(&procs, &key) : 0;
  if (known && known->flags & KV_PROCESS_CHILD) {
    struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, 0);
    if (kept) {
      count_time(task, kept);
      *(volatile __u64*)&kept->id = 0;
      kept->flags = 0;
    }
    /* A child of a VM's process becomes something else: no longer the VM's, unless its cgroup says so. */
    bpf_map_delete_elem(&procs, &key);
    forget_resolved(tgid);
    if (!bound_cgroup(task)) unmark_vm(tgid);
    known = 0;
  }
  if (qemu && !known) claim_slot(&key);
  /* What libvirt's child did before it became QEMU is not the VM's. */
  begin_thread(task);
  return 0;
}

/* A process of its own, but the VM's. */
static __noinline void follow(struct task_struct* leader, struct task_struct* follower, __u32 flags) {
  struct kv_process_key key;
  __u32 tgid = follower->tgid;

  process_key(leader, &key);
  struct kv_process* known = bpf_map_lookup_elem(&procs, &key);
  if (known) {
    struct kv_process inherited = {.id = known->id, .flags = KV_PROCESS_FOLLOWS | flags};
    process_key(follower, &key);
    if (bpf_map_update_elem(&procs, &key, &inherited, BPF_ANY)) count_stat(KV_STAT_MAP_ERROR);
  }
  forget_resolved(tgid);
  mark_vm(tgid);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(kv_fork, struct task_struct* parent, struct task_struct* child) {
  __u32 tgid = parent->tgid;

  if (!is_vm(tgid) || (__u32)child->tgid == tgid) return 0;
  follow(parent, child, KV_PROCESS_CHILD);
  begin_thread(child);
  return 0;
}

/* Any thread: those that the kernel makes for a process (io_uring's, vhost's) come without a fork. (Their
 * first wake-up is no place to allocate: before 6.4 the allocator may wake somebody itself, under the same
 * lock.) */
SEC("tp_btf/task_newtask")
int BPF_PROG(kv_new_thread, struct task_struct* task) {
  if (task && is_vm(task->tgid)) begin_thread(task);
  return 0;
}

/* Before 6.4 vhost's workers, and KVM's helpers of a VM, are processes of the kernel's own, named in the
 * context of the QEMU that they are made for. */
KV_INLINE bool works_for_current(struct task_struct* task, const char* name) {
  if (!(task->flags & PF_KTHREAD) || !is_vm(bpf_get_current_pid_tgid() >> 32)) return false;
  return starts_with(name, "vhost-", 6) || starts_with(name, "kvm-", 4);
}

SEC("tp_btf/task_rename")
int BPF_PROG(kv_rename, struct task_struct* task, const char* comm) {
  char name[KV_COMM_BYTES] = {};

  if (!task) return 0;
  bool known = is_vm(task->tgid);
  if (!known && !(task->flags & PF_KTHREAD)) return 0;
  bpf_probe_read_kernel_str(name, sizeof(name), comm);
  if (!known) {
    if (!works_for_current(task, name)) return 0;
    follow(bpf_get_current_task_btf(), task, 0);
    begin_thread(task);
  }
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, 0);
  if (!kept) return 0;
  if (bpf_task_storage_get(&vcpus, task, 0, 0)) return 0; /* KVM knows better */
  count_time(task, kept);                                 /* so far it was what it was called */
  classify(kept, name);
  return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(kv_exit, struct task_struct* task) {
  struct kv_process_key key;
  __u32 tgid = task->tgid;
  bool marked = is_vm(tgid);

  /* Of several last threads any may come here first and take the mark. */
  struct kv_task* kept = bpf_task_storage_get(&task_id, task, 0, 0);
  if (kept && (marked ? refresh(task, kept) : kept->id.generation)) begin_death(task, kept);
  if (!marked || task->signal->live.counter || !unmark_vm(tgid)) return 0;
  process_key(task, &key);
  struct kv_process* known = bpf_map_lookup_elem(&procs, &key);
  if (!known) return 0;
  struct kv_identity id = known->id;
  if (!(known->flags & KV_PROCESS_FOLLOWS)) {
    __u32 status = task->signal->group_exit_code;
    /* The daemon removes the entry when it has seen the end. */
    report(KV_EVENT_EXITED, &key, id, status ? status : task->exit_code);
  } else {
    bpf_map_delete_elem(&procs, &key);
  }
  return 0;
}
