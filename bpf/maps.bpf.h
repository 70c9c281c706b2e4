/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Every map and global of the programs. Sizes that are 1 here are set by the daemon before load. */
#ifndef KVMSCOPE_BPF_MAPS_BPF_H
#define KVMSCOPE_BPF_MAPS_BPF_H

#include "programs.bpf.h"

/* Of the prototypes of the inner maps only type, key, value and flags matter. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 1); /* slots */
  __type(key, __u32);
  __array(
      values, struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
        __uint(max_entries, KV_KINDS);
        __uint(key_size, sizeof(__u32));
        __uint(value_size, sizeof(struct kv_counter));
      });
} counters SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 1); /* slots */
  __type(key, __u32);
  __array(
      values, struct {
        __uint(type, BPF_MAP_TYPE_ARRAY);
        __uint(map_flags, BPF_F_INNER_MAP | BPF_F_MMAPABLE);
        __uint(max_entries, 1);
        __uint(key_size, sizeof(__u32));
        __uint(value_size, sizeof(struct kv_histogram));
      });
} histograms SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 1); /* tenants; 0 is the host */
  __type(key, __u32);
  __array(
      values, struct {
        __uint(type, BPF_MAP_TYPE_RINGBUF);
        __uint(max_entries, 4096);
      });
} events SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1); /* tenants */
  __type(key, __u32);
  __type(value, __u64);
} ring_drops SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1); /* slots */
  __type(key, __u32);
  __type(value, struct kv_slot_info);
} slot_info SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_STACK);
  __uint(max_entries, 1); /* slots */
  __type(value, struct kv_identity);
} spares SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1); /* slots, with room for children and helpers */
  __type(key, struct kv_process_key);
  __type(value, struct kv_process);
} procs SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC); /* only the daemon inserts */
  __uint(max_entries, 1);
  __type(key, __u64); /* id in the unified hierarchy */
  __type(value, struct kv_identity);
} cgroups SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct kv_task);
} task_id SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct kv_vcpu);
} vcpus SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1); /* tags of all queues that VMs may use */
  __type(key, __u32);
  __type(value, struct kv_carry);
} carries SEC(".maps");

/* Requests whose queue has no region, or whose tag lies beyond it. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 16384);
  __type(key, __u64); /* request */
  __type(value, struct kv_carry);
} carry_overflow SEC(".maps");

/* Bios that no carry stands for. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 65536);
  __type(key, __u64); /* bio */
  __type(value, struct kv_bio);
} bios SEC(".maps");

/* Taps and whose they are: all that slots number apart, so that there is room for every one. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1);
  __type(key, __u64);   /* kv_nic_key() */
  __type(value, __u64); /* kv_nic_owner() */
} nics SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 16384);
  __type(key, __u64); /* skb */
  __type(value, struct kv_queued);
} queued SEC(".maps");

/* Mapped by the daemon, and by every object of ours: one structure, so that all find the same things in the
 * same places. */
struct kv_globals globals;

/* --- set before load
 * ------------------------------------------------------------------------------------------ */

const volatile __u32 carry_capacity = 1;
const volatile bool identity_by_getrq = false;
/* block_rq_complete passes an errno (before 5.16) instead of a blk_status_t: commit 8a7d267b4a2d. */
const volatile bool error_is_errno = false;
const volatile struct kv_name qemu_names[KV_NAMES];

KV_INLINE void count_stat(enum kv_stat stat) {
  __sync_fetch_and_add(&globals.stats[stat], 1);
}

#endif
