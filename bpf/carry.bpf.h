/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where a request's identity is remembered from its start to its completion: in an array, by queue and tag. A
 * tag is one request's alone as long as that is under way, so nothing is inserted, removed, or lost to a full
 * table. */
#ifndef KVMSCOPE_BPF_CARRY_BPF_H
#define KVMSCOPE_BPF_CARRY_BPF_H

#include "maps.bpf.h"

/* Gives the queue a region at its first VM request. One task wins; the others use the overflow meanwhile. */
static __noinline bool adopt_queue(struct kv_queue* entry, struct request* rq) {
  struct request_queue* q = rq->q;
  __u32 state = *(volatile __u32*)&entry->state;
  __u32 depth = q->nr_requests;
  __u32 hctxs = q->nr_hw_queues;

  if (state == KV_QUEUE_BUSY) return false;
  if (state == KV_QUEUE_NO_ROOM && entry->queue == (__u64)q) return false;
  if (__sync_val_compare_and_swap(&entry->state, state, KV_QUEUE_BUSY) != state) return false;
  if (q->tag_set && q->tag_set->queue_depth > depth) depth = q->tag_set->queue_depth;
  __u32 size = hctxs * depth;
  entry->depth = 0;
  if (size > entry->size) {
    __u32 base = __sync_fetch_and_add(&carry_cursor, size);
    if (base + size > carry_capacity || base + size < base) {
      __sync_fetch_and_sub(&carry_cursor, size);
      entry->queue = (__u64)q;
      __sync_lock_test_and_set(&entry->state, KV_QUEUE_NO_ROOM);
      return false;
    }
    entry->base = base;
    entry->size = size;
  }
  entry->hctxs = hctxs;
  entry->depth = depth;
  entry->queue = (__u64)q;
  __sync_lock_test_and_set(&entry->state, KV_QUEUE_READY);
  return true;
}

/* The place for this request, whoever is in it. NULL: no region, or a tag beyond it (the depth was raised).
 */
KV_INLINE struct kv_carry* carry_place(struct request* rq, bool adopt) {
  struct request_queue* q = rq->q;
  struct kv_queue* entry = &queues[q->id & (KV_QUEUES - 1)];

  if (*(volatile __u64*)&entry->queue != (__u64)q) {
    if (!adopt || !adopt_queue(entry, rq)) return 0;
  }
  int tag = rq->internal_tag;
  if (tag < 0) tag = rq->tag;
  __u32 depth = entry->depth;
  if ((__u32)tag >= depth) return 0;
  __u32 hctx = rq->mq_hctx->queue_num;
  if (hctx >= entry->hctxs) return 0;
  __u32 index = entry->base + hctx * depth + tag;
  return bpf_map_lookup_elem(&carries, &index);
}

static __noinline struct kv_carry* overflow_of(__u64 rq) {
  return bpf_map_lookup_elem(&carry_overflow, &rq);
}

/* What is remembered of this request; NULL if it is not a VM's. */
KV_INLINE struct kv_carry* carry_of(struct request* rq) {
  struct kv_carry* carry = carry_place(rq, false);

  if (carry && carry->rq == (__u64)rq && carry->start_ns) return carry;
  if (*(volatile __s64*)&overflow_live > 0) return overflow_of((__u64)rq);
  return 0;
}

/* The start goes in last and out first: who reads it twice and finds it unchanged read one request's carry. */
KV_INLINE void begin_carry(struct kv_carry* carry, __u64 start_ns) {
  barrier();
  *(volatile __u64*)&carry->start_ns = start_ns;
}

KV_INLINE void forget_carry(struct request* rq, struct kv_carry* carry) {
  __u64 key = (__u64)rq;

  carry->start_ns = 0;
  if (*(volatile __s64*)&overflow_live > 0 && !bpf_map_delete_elem(&carry_overflow, &key))
    __sync_fetch_and_sub(&overflow_live, 1);
}

static __noinline void carry_in_overflow(struct kv_carry* carry) {
  __u64 key = carry->rq;

  if (!bpf_map_update_elem(&carry_overflow, &key, carry, BPF_NOEXIST))
    __sync_fetch_and_add(&overflow_live, 1);
  else if (bpf_map_update_elem(&carry_overflow, &key, carry, BPF_EXIST))
    count_stat(KV_STAT_CARRY_FULL);
}

KV_INLINE void remember_bio(struct bio* bio, const struct kv_bio* entry) {
  __u64 key = (__u64)bio;

  if (!bpf_map_update_elem(&bios, &key, entry, BPF_NOEXIST))
    __sync_fetch_and_add(&bios_live, 1);
  else if (bpf_map_update_elem(&bios, &key, entry, BPF_EXIST))
    count_stat(KV_STAT_BIO_FULL);
}

KV_INLINE void forget_bio(__u64 key) {
  if (!bpf_map_delete_elem(&bios, &key)) __sync_fetch_and_sub(&bios_live, 1);
}

#endif
