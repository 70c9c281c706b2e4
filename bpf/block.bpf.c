// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Block requests of VMs, at whatever device the VM's own task submits them to.
 *
 * Identity is the submitter's, taken where it still runs: at block_io_start, or at block_getrq on kernels
 * without (before 6.5). Issue runs in whoever flushes the queue, completion in an interrupt: neither says
 * whose it is.
 *
 * Merges. A request is one operation of the VM that started it. Bios merged in later (in the submitter's
 * context, but without a word about which request) are remembered by address if a VM's task brings them.
 * Nothing merges once a request is issued: there, if its length is not that of its own bio, its chain is
 * looked at. Is all of it the VM's, then the carry stands for the whole from then on. Otherwise it is walked
 * at completion, bio by bio: each one's bytes go to the VM that it was remembered for; those of the others to
 * nobody. Bios of another VM than the request's count there as an operation of their own. So bytes never
 * reach the wrong VM, and requests nobody merged into never pay for it. Discards merge without a tracepoint:
 * what was merged into one counts as foreign. */
#include "account.bpf.h"
#include "carry.bpf.h"

/* --- start */

KV_INLINE void start_request(__u32 tgid, struct request* rq) {
  __u64 start_ns =
      bpf_ktime_get_ns(); /* first: it waits for every load before it, the carry's is a slow one */
  struct kv_identity id;
  struct bio* bio = rq->bio;

  if (!bio) return;
  __u32 length = rq->__data_len;
  __u32 op = op_of(rq->cmd_flags, length);
  if (op == KV_OPS) return;
  resolve_current(tgid, &id);
  if (*(volatile __s64*)&globals.bios_live > 0 && handed_on(bio, id)) return;
  __u32 dev = disk_of(id, bio);
  if (dev == NO_DISK) return;
  struct kv_carry* carry = carry_place(rq, true);
  if (!carry) {
    struct kv_carry fresh = {
        .rq = (__u64)rq,
        .start_ns = start_ns,
        .id = id,
        .bio = (__u64)bio,
        .sector = rq->__sector,
        .length = length,
        .dev = dev,
        .op = op,
    };
    carry_in_overflow(&fresh);
    return;
  }
  if (take_start(carry)) recover(carry);
  carry->rq = (__u64)rq;
  carry->issue_ns = 0;
  carry->id = id;
  carry->bio = (__u64)bio;
  carry->sector = rq->__sector;
  carry->length = length;
  carry->dev = dev;
  carry->op = op;
  carry->flags = 0;
  carry->bytes = 0;
  begin_carry(carry, start_ns);
}

SEC("tp_btf/block_io_start")
int BPF_PROG(kv_io_start, struct request* rq) {
  __u32 tgid = bpf_get_current_pid_tgid() >> 32;

  if (is_vm(tgid)) start_request(tgid, rq);
  return 0;
}

/* Without io_start: the bio gets a request now; which one shows at issue, where the request's first bio is
 * looked up. If another bio was merged in front of it by then, the walk at completion finds it. */
KV_INLINE int remember_current(struct bio* bio) {
  __u32 tgid = bpf_get_current_pid_tgid() >> 32;
  struct kv_bio entry;

  if (!is_vm(tgid) || !describe_bio(tgid, bio, &entry)) return 0;
  if (*(volatile __s64*)&globals.bios_live > 0 && handed_on(bio, entry.id)) return 0;
  remember_bio(bio, &entry);
  return 0;
}

SEC("tp_btf/block_getrq")
int BPF_PROG(kv_getrq, struct bio* bio) {
  return remember_current(bio);
}

/* --- the chain of a request */

/* What a look at a request's bios finds. */
struct chain {
  __u64 rq;
  __u64 own_bio;
  __u64 own_sector;
  __u64 bio; /* the one looked at */
  struct kv_identity id;
  __u64 sector; /* of the first one */
  __u16 dev;
  bool own_seen;
  bool mixed; /* some are not the carry's VM's, or another disk's */
  __u32 pad;  /* a kernel before 6.4 refuses a stack that is not written whole */
};
KV_ASSERT(sizeof(struct chain) == 56);

/* One bio. Global, so that the verifier goes through it once and not for each bio. */
__noinline int look_at_bio(struct chain* chain, __u64 sector, __u32 size) {
  if (!chain) return 0;
  __u64 key = chain->bio;

  if (key == chain->own_bio && sector == chain->own_sector) {
    chain->own_seen = true;
    return 0;
  }
  struct kv_bio* entry = bio_in(key, chain->rq, sector, size);
  if (!entry || !same(entry->id, chain->id) || entry->dev != chain->dev) chain->mixed = true;
  return 0;
}

/* The same bio again, once all are known. */
__noinline int take_along_bio(struct chain* chain) {
  if (!chain) return 0;
  __u64 key = chain->bio;

  if (key == chain->own_bio) return 0;
  if (!chain->mixed) {
    forget_bio(key);
    return 0;
  }
  struct kv_bio* entry = bpf_map_lookup_elem(&bios, &key);
  if (!entry || entry->flags & KV_BIO_DEVICE) return 0;
  entry->rq = chain->rq;
  if (same(entry->id, chain->id)) entry->flags |= KV_BIO_PART;
  return 0;
}

/* The carry for all of a request that bios were merged into. False if the request is not the one remembered.
 */
static __noinline bool take_along(struct request* rq, struct kv_carry* carry) {
  struct chain chain = {.rq = (__u64)rq,
                        .own_bio = carry->bio,
                        .own_sector = carry->sector,
                        .id = carry->id,
                        .dev = carry->dev};
  struct bio* bio = rq->bio;

  for (int i = 0; i < KV_CHAIN && bio; i++) {
    chain.bio = (__u64)bio; /* by memory: a global function takes no pointer as a number */
    look_at_bio(&chain, bio->bi_iter.bi_sector, bio->bi_iter.bi_size);
    bio = bio->bi_next;
  }
  if (!chain.own_seen) return false;
  if (bio) chain.mixed = true;
  bio = rq->bio;
  for (int i = 0; i < KV_CHAIN && bio; i++) {
    chain.bio = (__u64)bio;
    take_along_bio(&chain);
    bio = bio->bi_next;
  }
  if (chain.mixed) {
    carry->flags |= KV_CARRY_MIXED;
    return true;
  }
  carry->bio = (__u64)rq->bio;
  carry->sector = rq->__sector;
  carry->length = rq->__data_len;
  return true;
}

/* A request of no VM: its end is the end of the bios of VMs that were merged into it. */
__noinline int go_along_bio(struct chain* chain, __u64 sector, __u32 size) {
  if (!chain) return 0;
  struct kv_bio* entry = bio_in(chain->bio, chain->rq, sector, size);

  if (entry) entry->rq = chain->rq;
  return 0;
}

static __noinline void go_along(struct request* rq) {
  struct chain chain = {.rq = (__u64)rq};
  struct bio* bio = rq->bio;

  for (int i = 0; i < KV_CHAIN && bio; i++) {
    chain.bio = (__u64)bio;
    go_along_bio(&chain, bio->bi_iter.bi_sector, bio->bi_iter.bi_size);
    bio = bio->bi_next;
  }
}

KV_INLINE bool unchanged(struct request* rq, struct kv_carry* carry) {
  return rq->__data_len == carry->length && rq->__sector == carry->sector && (__u64)rq->bio == carry->bio;
}

/* --- issue */

static __noinline bool carry_from_bio(struct request* rq) {
  struct bio* bio = rq->bio;
  __u64 key = (__u64)bio;

  if (!bio) return false;
  struct kv_bio* entry = bio_in(key, (__u64)rq, bio->bi_iter.bi_sector, bio->bi_iter.bi_size);
  if (!entry || entry->rq) return false; /* issued again, with a carry */
  struct kv_carry* carry = carry_place(rq, true);
  struct kv_carry fresh = {
      .rq = (__u64)rq,
      .start_ns = entry->start_ns,
      .issue_ns = bpf_ktime_get_ns(),
      .id = entry->id,
      .bio = key,
      .sector = entry->sector,
      .length = entry->length,
      .dev = entry->dev,
      .op = entry->op,
  };
  forget_bio(key);
  if (carry) {
    if (take_start(carry)) recover(carry);
    __u64 start_ns = fresh.start_ns;
    fresh.start_ns = 0;
    *carry = fresh;
    begin_carry(carry, start_ns);
  } else {
    carry_in_overflow(&fresh);
    carry = overflow_of((__u64)rq);
    if (!carry) return true;
  }
  if (!unchanged(rq, carry)) take_along(rq, carry);
  return true;
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(kv_rq_issue, struct request* rq) {
  /* First: its bio says that it is new, even where what the tag carried before ended unseen. */
  if (identity_by_getrq && *(volatile __s64*)&globals.bios_live > 0 && carry_from_bio(rq)) return 0;
  struct kv_carry* carry = carry_of(rq);
  if (!carry) {
    if (*(volatile __s64*)&globals.bios_live > 0 && rq->bio != rq->biotail) go_along(rq);
    return 0;
  }
  if (carry->issue_ns) {
    if (!(carry->flags & KV_CARRY_REQUEUED))
      retake(rq, carry); /* a stranger's, by a tag whose last use ended unseen */
    else
      carry->flags &= ~KV_CARRY_REQUEUED; /* the first issue counts */
    return 0;
  }
  if (!unchanged(rq, carry) && !take_along(rq, carry)) {
    retake(rq, carry);
    return 0;
  }
  carry->issue_ns = bpf_ktime_get_ns();
  return 0;
}

SEC("tp_btf/block_rq_requeue")
int BPF_PROG(kv_rq_requeue, struct request* rq) {
  struct kv_carry* carry = carry_of(rq);

  if (carry) carry->flags |= KV_CARRY_REQUEUED;
  return 0;
}

/* --- merges */

SEC("tp_btf/block_bio_backmerge")
int BPF_PROG(kv_bio_backmerge, struct bio* bio) {
  return remember_current(bio);
}

SEC("tp_btf/block_bio_frontmerge")
int BPF_PROG(kv_bio_frontmerge, struct bio* bio) {
  return remember_current(bio);
}

/* This request is absorbed by another one and never completes: its own bio is from now on a merged one. */
SEC("tp_btf/block_rq_merge")
int BPF_PROG(kv_rq_merge, struct request* rq) {
  struct kv_carry* carry = carry_of(rq);

  if (!carry) return 0;
  if (carry->issue_ns && !(carry->flags & KV_CARRY_REQUEUED)) { /* a stranger's, as at issue */
    retake(rq, carry);
    return 0;
  }
  struct kv_bio entry = {
      .start_ns = carry->start_ns,
      .id = carry->id,
      .sector = carry->sector,
      .length = carry->length,
      .dev = carry->dev,
      .op = carry->op,
  };
  remember_bio((struct bio*)carry->bio, &entry);
  forget_carry(rq, carry);
  return 0;
}

/* --- completion */

/* What a walk along a request's bios knows so far. */
struct walk {
  __u64 rq;
  __u64 own_bio;            /* the carry's, 0 = no carry */
  __u64 bio;                /* the one looked at */
  struct kv_identity id;    /* whose operation the request is */
  struct kv_identity other; /* the last one whose operation a bio was */
  __u64 own_bytes;          /* that went well */
  __u64 issue_ns;
  __u64 end_ns;
  __u32 own_taken; /* that are over */
  __u32 left;      /* bytes that completed now */
  __u32 error;     /* enum kv_error, if it failed */
  __u32 failed;
};
KV_ASSERT(sizeof(struct walk) == 80);

/* One bio of the request. 0 at the end. Global, so that the verifier goes through it once and not for each
 * bio. */
__noinline int walk_bio(struct walk* walk, __u64 sector, __u32 size) {
  if (!walk) return 0;
  __u64 key = walk->bio;
  __u32 taken = size < walk->left ? size : walk->left;
  bool whole = taken == size;
  __u32 good = walk->failed ? 0 : taken;

  walk->left -= taken;
  if (key == walk->own_bio) {
    walk->own_bytes += good;
    walk->own_taken += taken;
    return whole;
  }
  struct kv_bio* entry = bio_in(key, walk->rq, sector, size);
  if (!entry) {
    if (walk->own_bio) __sync_fetch_and_add(&globals.stats[KV_STAT_FOREIGN_MERGED], good);
    return whole;
  }
  __u64 start_ns = whole ? take_bio(entry) : 0;
  if (whole && !start_ns) return whole;
  bool counted = same(entry->id, walk->id) || same(entry->id, walk->other);
  struct finished done = {
      .id = entry->id,
      .dev = entry->dev,
      .op = entry->op,
      .operations = whole && !counted,
      .bytes = good,
      .start_ns = start_ns,
      .issue_ns = walk->issue_ns,
      .end_ns = walk->end_ns,
  };
  if (!account(&done)) {
    count_stat(KV_STAT_LATE);
  } else if (walk->failed && !counted) {
    account_error(&done.id, done.dev, done.op * KV_ERRORS + walk->error, sector, taken);
  }
  if (whole) {
    walk->other = done.id;
    forget_bio(key);
  } else {
    entry->sector += taken / 512;
    entry->length -= taken;
  }
  return whole;
}

static __noinline void walk_request(struct request* rq, struct walk* walk) {
  struct bio* bio = rq->bio;

  for (int i = 0; i < KV_CHAIN; i++) {
    if (!bio) return;
    walk->bio = (__u64)bio;
    if (!walk_bio(walk, bio->bi_iter.bi_sector, bio->bi_iter.bi_size)) return;
    bio = bio->bi_next;
  }
  if (bio) count_stat(KV_STAT_LONG_CHAIN);
}

KV_INLINE enum kv_error error_kind(int error) {
  return error_is_errno ? errno_kind(error) : status_kind(error);
}

/* A request that no carry stands for may hold bios of VMs: merged in, or (getrq) never issued. */
static __noinline void complete_foreign(struct request* rq, int error, __u32 bytes) {
  struct walk walk = {
      .rq = (__u64)rq,
      .issue_ns = rq->io_start_time_ns,
      .end_ns = bpf_ktime_get_ns(),
      .left = bytes,
      .error = error_kind(error),
      .failed = error != 0,
  };

  walk_request(rq, &walk);
}

/* A part, or the end, of a request with bios of others. */
static __noinline void complete_mixed(struct request* rq, struct kv_carry* carry, int error, __u32 bytes) {
  struct walk walk = {
      .rq = (__u64)rq,
      .own_bio = carry->bio,
      .id = carry->id,
      .issue_ns = carry->issue_ns,
      .end_ns = bpf_ktime_get_ns(),
      .left = bytes,
      .error = error_kind(error),
      .failed = error != 0,
  };

  walk_request(rq, &walk);
  carry->bytes += walk.own_bytes;
  carry->length -= walk.own_taken < carry->length ? walk.own_taken : carry->length;
}

/* The request is not the one that its tag's carry stands for. */
KV_INLINE bool ended_unseen(struct request* rq, struct kv_carry* carry) {
  if (carry->flags & KV_CARRY_MIXED) return false;
  if (carry->flags & KV_CARRY_PARTIAL) return rq->__data_len != carry->length;
  return !unchanged(rq, carry) && !take_along(rq, carry);
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(kv_rq_complete, struct request* rq, int error, unsigned int nr_bytes) {
  struct kv_carry* carry = carry_of(rq);

  if (!nr_bytes && rq->__data_len) return 0; /* nothing is over: the driver tries again, or says so later */
  if (carry && ended_unseen(rq, carry)) {
    retake(rq, carry);
    carry = 0;
  }
  if (!carry) {
    if (*(volatile __s64*)&globals.bios_live > 0 && (identity_by_getrq || rq->bio != rq->biotail))
      complete_foreign(rq, error, nr_bytes);
    return 0;
  }
  bool mixed = carry->flags & KV_CARRY_MIXED;
  if (mixed) {
    complete_mixed(rq, carry, error, nr_bytes);
  } else if (!error) {
    carry->bytes += nr_bytes;
  }
  if (error && !(carry->flags & KV_CARRY_FAILED)) {
    account_error(&carry->id, carry->dev, carry->op * KV_ERRORS + error_kind(error), rq->__sector, nr_bytes);
    carry->flags |= KV_CARRY_FAILED;
  }
  if (nr_bytes < rq->__data_len) {
    carry->flags |= KV_CARRY_PARTIAL;
    if (!mixed) carry->length = rq->__data_len - nr_bytes;
    return 0;
  }
  /* An issue inside another one's program on the same CPU is not seen; then the kernel's own time, if it
   * keeps one. */
  __u64 issue_ns = carry->issue_ns;
  if (!issue_ns && rq->io_start_time_ns >= carry->start_ns) issue_ns = rq->io_start_time_ns;
  struct finished done = {
      .id = carry->id,
      .dev = carry->dev,
      .op = carry->op,
      .operations = 1,
      .bytes = carry->bytes,
      .start_ns = carry->start_ns,
      .issue_ns = issue_ns,
      .end_ns = bpf_ktime_get_ns(),
  };
  if (!account(&done)) count_stat(KV_STAT_LATE);
  forget_carry(rq, carry);
  return 0;
}

/* --- before a reading */

KV_INLINE bool freed(__u64 address) {
  struct request* rq = (struct request*)address;
  int references = 1;

  return !bpf_core_read(&references, sizeof(references), &rq->ref) && !references;
}

/* Recovers what ended unseen and whose tag has not been used again: its request is freed. A completion's
 * program runs before its request is freed, so none is under way for this one; the tag's next use may come in
 * between, and changes the start. */
static __noinline void settle_carry(struct kv_carry* carry) {
  __u64 start_ns = *(volatile __u64*)&carry->start_ns;

  if (!start_ns) return;
  barrier();
  struct kv_carry seen = *carry;
  if (freed(seen.rq) && __sync_val_compare_and_swap(&carry->start_ns, start_ns, 0) == start_ns)
    recover(&seen);
}

static long settle_one(__u32 index, void* unused) {
  struct kv_carry* carry = bpf_map_lookup_elem(&carries, &index);

  if (!carry) return 1;
  settle_carry(carry);
  return 0;
}

/* The entry stays: the request's next use may be putting itself there. */
static long settle_overflow(void* map, __u64* rq, struct kv_carry* carry, void* unused) {
  settle_carry(carry);
  return 0;
}

static long settle_bio(void* map, __u64* bio, struct kv_bio* entry, void* unused) {
  __u64 key = *bio;
  __u64 rq = entry->rq;

  if (!rq || !freed(rq)) return 0;
  recover_bio(entry);
  forget_bio(key);
  return 0;
}

/* A raw tracepoint's program so that it may not sleep (waiting for RCU then excludes it, as it does every
 * writer); it is attached nowhere. */
SEC("raw_tp")
int kv_settle(void* context) {
  bpf_loop(globals.carry_cursor, settle_one, 0, 0);
  if (*(volatile __s64*)&globals.overflow_live > 0)
    bpf_for_each_map_elem(&carry_overflow, settle_overflow, 0, 0);
  if (*(volatile __s64*)&globals.bios_live > 0) bpf_for_each_map_elem(&bios, settle_bio, 0, 0);
  return 0;
}
