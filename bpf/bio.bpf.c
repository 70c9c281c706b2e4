// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Devices without requests (dm, zram, multipath heads): from the bio's submission to its end. Attached only
 * where the host has such a device; the requests of the devices below are numbered apart and ignored by name.
 */
#include "account.bpf.h"
#include "carry.bpf.h"

/* KV_OPS: none of ours (passed through to the driver, zone management). */
KV_INLINE __u32 op_of(__u32 flags, __u32 length) {
  __u32 op = flags & 0xff;

  if (op == 0) return KV_READ;
  if (op == 1)
    return length                                                                   ? KV_WRITE
           : (flags >> bpf_core_enum_value(enum req_flag_bits, __REQ_PREFLUSH)) & 1 ? KV_FLUSH
                                                                                    : KV_OPS;
  if (op == 2) return KV_FLUSH;
  if (op == 3 || op == 5 || op == 9) return KV_DISCARD; /* discard, secure erase, write zeroes */
  if (op < 34 && op & 1 && length) return KV_WRITE;     /* zone append, whose number has changed */
  return KV_OPS;
}

/* Fills in what a bio of the current VM task would count as; false if it counts as nothing. */
KV_INLINE bool describe_bio(__u32 tgid, struct bio* bio, struct kv_bio* entry) {
  __u32 op = op_of(bio->bi_opf, bio->bi_iter.bi_size);

  if (op == KV_OPS) return false;
  resolve_current(tgid, &entry->id);
  __u32 dev = disk_of(entry->id, bio);
  if (dev == NO_DISK) return false;
  entry->start_ns = bpf_ktime_get_ns();
  entry->sector = bio->bi_iter.bi_sector;
  entry->length = bio->bi_iter.bi_size;
  entry->dev = dev;
  entry->op = op;
  entry->flags = 0;
  entry->rq = 0;
  return true;
}

#define BLK_STS_AGAIN 12 /* include/linux/blk_types.h */

SEC("tp_btf/block_bio_queue")
int BPF_PROG(kv_bio_queue, struct bio* bio) {
  __u32 tgid = bpf_get_current_pid_tgid() >> 32;
  struct kv_bio entry;

  if (!is_vm(tgid) || bio->bi_bdev->bd_disk->queue->mq_ops) return 0;
  if (!describe_bio(tgid, bio, &entry)) return 0;
  entry.flags = KV_BIO_DEVICE;
  struct kv_slot_info* info = info_of(entry.id);
  if (info && entry.dev < KV_MAX_DISKS && !(*(volatile __u32*)&info->stacked >> entry.dev & 1))
    __sync_fetch_and_or(&info->stacked, 1U << entry.dev);
  remember_bio(bio, &entry);
  return 0;
}

/* The queue is that of the device that completes it, which may be another one than it was submitted to. */
KV_INLINE int complete_bio(struct bio* bio) {
  __u64 key = (__u64)bio;

  if (*(volatile __s64*)&globals.bios_live <= 0) return 0;
  struct kv_bio* entry = bpf_map_lookup_elem(&bios, &key);
  if (!entry || !(entry->flags & KV_BIO_DEVICE)) return 0;
  __u64 start_ns = take_bio(entry);
  if (!start_ns) return 0;
  int status = bio->bi_status;
  if (status == BLK_STS_AGAIN) { /* REQ_NOWAIT: nothing was done, the submitter comes again */
    forget_bio(key);
    return 0;
  }
  struct finished done = {
      .id = entry->id,
      .dev = entry->dev,
      .op = entry->op,
      .operations = 1,
      .bytes = status ? 0 : entry->length,
      .start_ns = start_ns,
      .end_ns = bpf_ktime_get_ns(),
  };
  if (!account(&done)) {
    count_stat(KV_STAT_LATE);
  } else if (status) {
    account_error(&done.id, done.dev, done.op * KV_ERRORS + status_kind(status), entry->sector,
                  entry->length);
  }
  forget_bio(key);
  return 0;
}

/* The kernel skips a program in an interrupt that hits the program itself. A bio has no tag whose next use
 * would tell, so there are two: whichever comes first counts, the other one finds nothing left. */
SEC("tp_btf/block_bio_complete")
int BPF_PROG(kv_bio_complete, struct request_queue* q, struct bio* bio) {
  return complete_bio(bio);
}

SEC("tp_btf/block_bio_complete")
int BPF_PROG(kv_bio_complete2, struct request_queue* q, struct bio* bio) {
  return complete_bio(bio);
}
