/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where a request's identity is remembered from its start to its completion: in an array, by queue and tag. A
 * tag is one request's alone as long as that is under way, so nothing is inserted, removed, or lost to a full
 * table. */
#ifndef KVMSCOPE_BPF_CARRY_BPF_H
#define KVMSCOPE_BPF_CARRY_BPF_H

#include "account.bpf.h"

/* Gives the queue a region at its first VM request. One task wins; the others use the overflow meanwhile. */
static __noinline bool adopt_queue(struct kv_queue* entry, struct request* rq) {
  struct request_queue* q = rq->q;
  __u32 state = *(volatile __u32*)&entry->state;
  __u32 depth = q->nr_requests;
  __u32 hctxs = q->nr_hw_queues;

  if (q->tag_set && bpf_core_field_exists(q->tag_set->shared_tags) && q->tag_set->shared_tags) hctxs = 1;
  if (state == KV_QUEUE_BUSY) return false;
  if (state == KV_QUEUE_NO_ROOM && entry->queue == (__u64)q) return false;
  if (__sync_val_compare_and_swap(&entry->state, state, KV_QUEUE_BUSY) != state) return false;
  if (q->tag_set && q->tag_set->queue_depth > depth) depth = q->tag_set->queue_depth;
  __u32 size = hctxs * depth;
  entry->depth = 0;
  if (size > entry->size) {
    __u32 base = __sync_fetch_and_add(&globals.carry_cursor, size);
    if (base + size > carry_capacity || base + size < base) {
      __sync_fetch_and_sub(&globals.carry_cursor, size);
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
  __u32 id = q->id;

  if (id >= KV_QUEUES) return 0; /* the lowest free id is given to a new queue: no two live ones share one */
  struct kv_queue* entry = &globals.queues[id];
  if (*(volatile __u64*)&entry->queue != (__u64)q) {
    if (!adopt || !adopt_queue(entry, rq)) return 0;
  }
  int tag = rq->internal_tag;
  if (tag < 0) tag = rq->tag;
  __u32 depth = entry->depth;
  if ((__u32)tag >= depth) return 0;
  __u32 hctx = entry->hctxs > 1 ? rq->mq_hctx->queue_num : 0;
  if (hctx >= entry->hctxs) return 0;
  __u32 index = entry->base + hctx * depth + tag;
  return bpf_map_lookup_elem(&carries, &index);
}

#define KV_HAND_ON_NS 1000000000ULL

KV_INLINE bool same(struct kv_identity a, struct kv_identity b) {
  return a.slot == b.slot && a.generation == b.generation;
}

/* --- what ended unseen
 * The kernel ran no program at its completion (seen on one 6.18 guest kernel under load: whole batches, in
 * every tracepoint of completion alike, none of them a recursion miss; and a program is skipped in an
 * interrupt that hits itself). It counts as done well, without delays: a second program beside the first
 * would cost every request on the host 40 ns. docs/adr/0006 */

static __noinline void recover(struct kv_carry* carry) {
  count_stat(KV_STAT_STALE);
  if (!account_operations(carry->id, carry->dev, carry->op, 1, carry->bytes + carry->length))
    count_stat(KV_STAT_LATE);
}

/* Takes the start out, as of a carry: who gets it (not 0) counts the bio, whoever else still finds the entry
 * does not. */
KV_INLINE __u64 take_bio(struct kv_bio* entry) {
  __u64 start_ns = *(volatile __u64*)&entry->start_ns;

  return start_ns && __sync_val_compare_and_swap(&entry->start_ns, start_ns, 0) == start_ns ? start_ns : 0;
}

static __noinline void recover_bio(struct kv_bio* entry) {
  /* Before it is taken: then its address may be used again. */
  struct kv_identity id = entry->id;
  __u64 operations = entry->flags & KV_BIO_PART ? 0 : 1;
  __u32 length = entry->length;
  __u32 dev = entry->dev;
  __u32 op = entry->op;

  barrier();
  if (!take_bio(entry)) return;
  count_stat(KV_STAT_STALE);
  if (!account_operations(id, dev, op, operations, length)) count_stat(KV_STAT_LATE);
}

/* --- requests */

static __noinline struct kv_carry* overflow_of(__u64 rq) {
  struct kv_carry* carry = bpf_map_lookup_elem(&carry_overflow, &rq);

  return carry && carry->start_ns ? carry : 0;
}

/* What is remembered of this request; NULL if it is not a VM's. */
KV_INLINE struct kv_carry* carry_of(struct request* rq) {
  struct kv_carry* carry = carry_place(rq, false);

  if (carry && carry->rq == (__u64)rq && carry->start_ns) return carry;
  if (*(volatile __s64*)&globals.overflow_live > 0) return overflow_of((__u64)rq);
  return 0;
}

/* The start goes in last and out first: who reads it twice and finds it unchanged read one request's carry.
 */
KV_INLINE void begin_carry(struct kv_carry* carry, __u64 start_ns) {
  barrier();
  *(volatile __u64*)&carry->start_ns = start_ns;
}

KV_INLINE void forget_carry(struct request* rq, struct kv_carry* carry) {
  __u64 key = (__u64)rq;

  carry->start_ns = 0;
  if (*(volatile __s64*)&globals.overflow_live > 0 && !bpf_map_delete_elem(&carry_overflow, &key))
    __sync_fetch_and_sub(&globals.overflow_live, 1);
}

/* Takes the start out; true for the one who got it: only he counts. The look before spares the usual case, a
 * free place, an exchange of a line that another CPU wrote last. */
KV_INLINE bool take_start(struct kv_carry* carry) {
  return *(volatile __u64*)&carry->start_ns && __sync_lock_test_and_set(&carry->start_ns, 0);
}

/* The tag has another request by now: the one remembered has ended. */
static __noinline void retake(struct request* rq, struct kv_carry* carry) {
  struct kv_carry seen = *carry;

  if (take_start(carry)) recover(&seen);
  forget_carry(rq, carry);
}

static __noinline void carry_in_overflow(struct kv_carry* carry) {
  __u64 key = carry->rq;

  if (!bpf_map_update_elem(&carry_overflow, &key, carry, BPF_NOEXIST)) {
    __sync_fetch_and_add(&globals.overflow_live, 1);
    return;
  }
  struct kv_carry* old = overflow_of(key);
  if (old) {
    struct kv_carry seen = *old;
    if (take_start(old)) recover(&seen);
  }
  if (bpf_map_update_elem(&carry_overflow, &key, carry, BPF_EXIST)) count_stat(KV_STAT_CARRY_FULL);
}

/* --- bios */

KV_INLINE void forget_bio(__u64 key) {
  if (!bpf_map_delete_elem(&bios, &key)) __sync_fetch_and_sub(&globals.bios_live, 1);
}

/* What is remembered of this bio on its way through a request; NULL if nothing is. What was remembered of an
 * earlier one at its address has ended. */
KV_INLINE struct kv_bio* bio_in(__u64 key, __u64 rq, __u64 sector, __u32 length) {
  struct kv_bio* entry = bpf_map_lookup_elem(&bios, &key);

  if (!entry || !entry->start_ns || entry->flags & KV_BIO_DEVICE) return 0;
  if (entry->sector == sector && entry->length == length && (!entry->rq || entry->rq == rq)) return entry;
  recover_bio(entry);
  forget_bio(key);
  return 0;
}

/* A device without requests (a multipath head, md) has handed on its bio, as it is or in pieces, and counts
 * it itself. That happens in the submitter, at once: what is older has ended unseen. */
static __noinline bool handed_on(struct bio* bio, struct kv_identity id) {
  struct bio* whole = bio;

  if (&bio_chain_endio && (__u64)bio->bi_end_io == (__u64)&bio_chain_endio) whole = unsplit(bio);
  __u64 key = (__u64)whole;
  struct kv_bio* entry = bpf_map_lookup_elem(&bios, &key);
  if (!entry || !(entry->flags & KV_BIO_DEVICE)) return false;
  __u64 start_ns = entry->start_ns;
  if (start_ns && same(entry->id, id) && bio->bi_iter.bi_size <= entry->length &&
      bpf_ktime_get_ns() - start_ns < KV_HAND_ON_NS)
    return true;
  if (whole != bio) return false;
  recover_bio(entry);
  forget_bio(key);
  return false;
}

KV_INLINE void remember_bio(struct bio* bio, const struct kv_bio* entry) {
  __u64 key = (__u64)bio;

  if (!bpf_map_update_elem(&bios, &key, entry, BPF_NOEXIST)) {
    __sync_fetch_and_add(&globals.bios_live, 1);
    return;
  }
  struct kv_bio* old = bpf_map_lookup_elem(&bios, &key);
  if (old) recover_bio(old);
  if (bpf_map_update_elem(&bios, &key, entry, BPF_EXIST)) count_stat(KV_STAT_BIO_FULL);
}

#endif
