// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Block requests of VMs, at whatever device the VM's own task submits them to.
 *
 * Identity is the submitter's, taken where it still runs: at block_io_start, or at block_getrq on kernels
 * without (before 6.5). Issue runs in whoever flushes the queue, completion in an interrupt: neither says
 * whose it is.
 *
 * Merges. A request is one operation of the VM that started it. Bios merged in later (in the submitter's
 * context, but without a word about which request) are remembered by address if a VM's task brings them. A
 * request whose length at completion is not that of its own bio is walked, bio by bio: each one's bytes go to
 * the VM that it was remembered for; those of the others to nobody. Bios of another VM than the request's
 * count there as an operation of their own. So bytes never reach the wrong VM, and requests nobody merged
 * into never pay for it. Discards merge without a tracepoint: what was merged into one counts as foreign. */
#include "account.bpf.h"
#include "carry.bpf.h"

/* This request's tag is another's by now, so it has ended, but the kernel ran no program at its completion
 * (seen on one 6.18 guest kernel under load: whole batches, in every tracepoint of completion alike, none of
 * them a recursion miss; and a program is skipped in an interrupt that hits itself). It counts as done well,
 * without delays: a second program beside the first would cost every request on the host 40 ns. */
static __noinline void recover(struct kv_carry* carry) {
  struct finished done = {
      .id = carry->id,
      .dev = carry->dev,
      .op = carry->op,
      .operations = 1,
      .bytes = carry->bytes + carry->length,
  };

  count_stat(KV_STAT_STALE);
  if (!account(&done)) count_stat(KV_STAT_LATE);
}

KV_INLINE void start_request(__u32 tgid, struct request* rq) {
  struct kv_identity id;
  struct bio* bio = rq->bio;

  if (!bio) return;
  __u32 length = rq->__data_len;
  __u32 op = op_of(rq->cmd_flags, length);
  if (op == KV_OPS) return;
  resolve_current(tgid, &id);
  __u32 dev = disk_of(id, bio);
  if (dev == NO_DISK) return;
  struct kv_carry* carry = carry_place(rq, true);
  if (!carry) {
    struct kv_carry fresh = {
        .rq = (__u64)rq,
        .start_ns = bpf_ktime_get_ns(),
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
  if (__sync_lock_test_and_set(&carry->start_ns, 0)) recover(carry);
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
  begin_carry(carry, bpf_ktime_get_ns());
}

SEC("tp_btf/block_io_start")
int BPF_PROG(kv_io_start, struct request* rq) {
  __u32 tgid = bpf_get_current_pid_tgid() >> 32;

  if (is_vm(tgid)) start_request(tgid, rq);
  return 0;
}

/* Without io_start: the bio gets a request now; which one shows at issue, where the request's first bio is
 * looked up. If another bio was merged in front of it by then, the walk at completion finds it. */
SEC("tp_btf/block_getrq")
int BPF_PROG(kv_getrq, struct bio* bio) {
  __u32 tgid = bpf_get_current_pid_tgid() >> 32;
  struct kv_bio entry;

  if (is_vm(tgid) && describe_bio(tgid, bio, &entry)) remember_bio(bio, &entry);
  return 0;
}

static __noinline bool carry_from_bio(struct request* rq) {
  __u64 key = (__u64)rq->bio;
  struct kv_bio* entry = bpf_map_lookup_elem(&bios, &key);

  if (!entry) return false;
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
  if (carry) {
    if (__sync_lock_test_and_set(&carry->start_ns, 0)) recover(carry);
    __u64 start_ns = fresh.start_ns;
    fresh.start_ns = 0;
    *carry = fresh;
    begin_carry(carry, start_ns);
  } else {
    carry_in_overflow(&fresh);
  }
  forget_bio(key);
  return true;
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(kv_rq_issue, struct request* rq) {
  /* First: its bio says that it is new, even where what the tag carried before ended unseen. */
  if (identity_by_getrq && *(volatile __s64*)&bios_live > 0 && carry_from_bio(rq)) return 0;
  struct kv_carry* carry = carry_of(rq);
  if (!carry) return 0;
  if (carry->issue_ns && !(carry->flags & KV_CARRY_PARTIAL) && (__u64)rq->bio != carry->bio &&
      rq->__data_len == carry->length) {
    recover(carry);
    forget_carry(rq, carry);
    return 0;
  }
  /* A requeue issues again: the first one counts. */
  if (!carry->issue_ns) carry->issue_ns = bpf_ktime_get_ns();
  return 0;
}

KV_INLINE int merged(struct bio* bio) {
  __u32 tgid = bpf_get_current_pid_tgid() >> 32;
  struct kv_bio entry;

  if (is_vm(tgid) && describe_bio(tgid, bio, &entry)) remember_bio(bio, &entry);
  return 0;
}

SEC("tp_btf/block_bio_backmerge")
int BPF_PROG(kv_bio_backmerge, struct bio* bio) {
  return merged(bio);
}

SEC("tp_btf/block_bio_frontmerge")
int BPF_PROG(kv_bio_frontmerge, struct bio* bio) {
  return merged(bio);
}

/* This request is absorbed by another one and never completes: its own bio is from now on a merged one. */
SEC("tp_btf/block_rq_merge")
int BPF_PROG(kv_rq_merge, struct request* rq) {
  struct kv_carry* carry = carry_of(rq);

  if (!carry) return 0;
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

/* What a walk along a request's bios knows so far. */
struct walk {
  __u64 own_bio;         /* the carry's, 0 = no carry */
  __u64 bio;             /* the one looked at */
  struct kv_identity id; /* whose operation the request is */
  __u64 own_bytes;       /* of that VM */
  __u64 issue_ns;
  __u64 end_ns;
  __u32 left; /* bytes that completed now */
  bool own_seen;
  bool failed;
};

/* One bio of the request. 0 at the end. Global, so that the verifier goes through it once and not for each
 * bio. */
__noinline int walk_bio(struct walk* walk, __u32 size) {
  if (!walk) return 0;
  __u64 key = walk->bio;
  __u32 taken = size < walk->left ? size : walk->left;
  bool whole = taken == size;
  __u32 good = walk->failed ? 0 : taken;

  walk->left -= taken;
  if (key == walk->own_bio) {
    walk->own_bytes += good;
    walk->own_seen = true;
    return whole;
  }
  struct kv_bio* entry = bpf_map_lookup_elem(&bios, &key);
  if (!entry) {
    if (walk->own_bio) __sync_fetch_and_add(&stats[KV_STAT_FOREIGN_MERGED], good);
    return whole;
  }
  if (walk->id.generation && entry->id.slot == walk->id.slot && entry->id.generation == walk->id.generation) {
    walk->own_bytes += good;
  } else {
    struct finished done = {
        .id = entry->id,
        .dev = entry->dev,
        .op = entry->op,
        .operations = whole,
        .bytes = good,
        .start_ns = entry->start_ns,
        .issue_ns = walk->issue_ns,
        .end_ns = walk->end_ns,
    };
    if (!account(&done)) count_stat(KV_STAT_LATE);
    /* Further bios of this VM in a request of nobody's belong to the same operation. */
    if (!walk->own_bio && whole) {
      walk->id = done.id;
      walk->own_seen = true;
    }
  }
  if (whole) forget_bio(key);
  return whole;
}

static __noinline void walk_request(struct request* rq, struct walk* walk) {
  struct bio* bio = rq->bio;

  for (int i = 0; i < KV_CHAIN; i++) {
    if (!bio) return;
    walk->bio = (__u64)bio; /* by memory: a global function takes no pointer as a number */
    if (!walk_bio(walk, bio->bi_iter.bi_size)) return;
    bio = bio->bi_next;
  }
  if (bio) count_stat(KV_STAT_LONG_CHAIN);
}

/* A request that no carry stands for may hold bios of VMs: merged in, or (getrq) never issued. */
static __noinline void complete_foreign(struct request* rq, int error, __u32 bytes) {
  struct walk walk = {
      .issue_ns = rq->io_start_time_ns,
      .end_ns = bpf_ktime_get_ns(),
      .left = bytes,
      .failed = error != 0,
  };

  walk_request(rq, &walk);
}

/* A part, or the end, of a request that grew. False if the request is not the one remembered. */
static __noinline bool complete_grown(struct request* rq, struct kv_carry* carry, int error, __u32 bytes) {
  struct walk walk = {
      .own_bio = carry->bio,
      .id = carry->id,
      .issue_ns = carry->issue_ns,
      .end_ns = bpf_ktime_get_ns(),
      .left = bytes,
      .failed = error != 0,
  };

  walk_request(rq, &walk);
  if (!walk.own_seen && !(carry->flags & KV_CARRY_GROWN)) return false;
  carry->flags |= KV_CARRY_GROWN;
  carry->bytes += walk.own_bytes;
  return true;
}

KV_INLINE bool unchanged(struct request* rq, struct kv_carry* carry) {
  return rq->__data_len == carry->length && rq->__sector == carry->sector && (__u64)rq->bio == carry->bio;
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(kv_rq_complete, struct request* rq, int error, unsigned int nr_bytes) {
  struct kv_carry* carry = carry_of(rq);
  __u32 flags;

  if (!carry) {
    if (*(volatile __s64*)&bios_live > 0 && (identity_by_getrq || rq->bio != rq->biotail))
      complete_foreign(rq, error, nr_bytes);
    return 0;
  }
  flags = carry->flags;
  if (flags & KV_CARRY_GROWN || (!(flags & KV_CARRY_PARTIAL) && !unchanged(rq, carry))) {
    if (!complete_grown(rq, carry, error, nr_bytes)) {
      recover(carry);
      forget_carry(rq, carry);
      return 0;
    }
  } else if (!error) {
    carry->bytes += nr_bytes;
  }
  if (error && !(flags & KV_CARRY_FAILED)) {
    __u32 kind = error_is_errno ? errno_kind(error) : status_kind(error);
    account_error(&carry->id, carry->dev, carry->op * KV_ERRORS + kind, rq->__sector, nr_bytes);
    carry->flags |= KV_CARRY_FAILED;
  }
  if (nr_bytes < rq->__data_len) {
    carry->flags |= KV_CARRY_PARTIAL;
    carry->length = rq->__data_len - nr_bytes;
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

/* Recovers what ended unseen and whose tag has not been used again: its request is freed. Run by the daemon
 * before each reading. A completion's program runs before its request is freed, so none is under way for this
 * one; the tag's next use may come in between, and changes the start. */
static long settle_one(__u32 index, void* unused) {
  struct kv_carry* carry = bpf_map_lookup_elem(&carries, &index);
  int references = 1;

  if (!carry) return 1;
  __u64 start_ns = *(volatile __u64*)&carry->start_ns;
  if (!start_ns) return 0;
  barrier();
  struct kv_carry seen = *carry;
  struct request* rq = (struct request*)seen.rq;
  if (bpf_core_read(&references, sizeof(references), &rq->ref) || references) return 0;
  if (__sync_val_compare_and_swap(&carry->start_ns, start_ns, 0) == start_ns) recover(&seen);
  return 0;
}

/* A raw tracepoint's program so that it may not sleep (waiting for RCU then excludes it, as it does every
 * writer); it is attached nowhere. */
SEC("raw_tp")
int kv_settle(void* context) {
  bpf_loop(carry_cursor, settle_one, 0, 0);
  return 0;
}
