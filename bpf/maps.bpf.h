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

/* --- globals, mapped by the daemon
 * ---------------------------------------------------------------------------- */

/* Which thread groups belong to VMs: the filter that a foreign task meets first. */
__u64 vm_tgids[KV_TGIDS / 64];
/* What a resolved identity was resolved at: the daemon writes the identity first and bumps the version after.
 */
__u32 versions[KV_VERSIONS];
__u64 stats[KV_STATS];
__u32 spare_count;

/* Request queues and their regions in `carries`. */
struct kv_queue queues[KV_QUEUES];
__u32 carry_cursor;
/* Entries in `carry_overflow` and `bios`: while 0, nobody looks there. */
__s64 overflow_live;
__s64 bios_live;

/* --- set before load
 * ------------------------------------------------------------------------------------------ */

const volatile __u32 carry_capacity = 1;
const volatile bool identity_by_getrq = false;
/* block_rq_complete passes an errno (before 5.16) instead of a blk_status_t: commit 8a7d267b4a2d. */
const volatile bool error_is_errno = false;
const volatile struct kv_name qemu_names[KV_NAMES];

/* Types that only pointers lead to would miss in the object's BTF, where the tests compare layouts. */
struct kv_layouts {
  struct kv_counter counter;
  struct kv_header header;
  struct kv_histogram histogram;
  struct kv_event_process process;
  struct kv_event_io_error io_error;
};
struct kv_layouts* layouts;

KV_INLINE void count_stat(enum kv_stat stat) {
  __sync_fetch_and_add(&stats[stat], 1);
}

#endif
