/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Adding to a slot's cells, numbering its disks, telling its tenant. */
#ifndef KVMSCOPE_BPF_ACCOUNT_BPF_H
#define KVMSCOPE_BPF_ACCOUNT_BPF_H

#include "maps.bpf.h"

KV_INLINE __u32 cell_index(const struct kv_header* header, __u32 dev, __u32 sub) {
  __u32 last = header->devs - 1;

  return header->base + (dev < last ? dev : last) * header->subs + sub;
}

KV_INLINE struct kv_counter* counter_cell(struct kv_identity id, __u32 kind, __u32 dev, __u32 sub) {
  void* inner = bpf_map_lookup_elem(&counters, &id.slot);
  if (!inner) return 0;
  struct kv_header* header = bpf_map_lookup_elem(inner, &kind);
  if (!header || header->generation != id.generation) return 0;
  __u32 index = cell_index(header, dev, sub);
  return bpf_map_lookup_elem(inner, &index);
}

/* Functions with loops or many paths are global where their arguments allow it: the verifier goes through
 * them once and not at each place that uses them. */
__noinline __u32 bucket_of(__u64 ns) {
  return kv_bucket(ns);
}

KV_INLINE void add_delay(struct kv_histogram* cell, __u64 ns) {
  __u32 bucket = bucket_of(ns);

  if (bucket > KV_BUCKETS) return;
  __sync_fetch_and_add(&cell->counts[bucket], 1);
  __sync_fetch_and_add(&cell->sum_ns, ns);
}

/* What one request (or bio) that is over adds to its slot. */
struct finished {
  struct kv_identity id;
  __u32 dev;
  __u32 op;
  __u64 operations; /* 0 for a bio of a request that is counted already */
  __u64 bytes;
  __u64 start_ns; /* 0: no delays */
  __u64 issue_ns; /* 0: never issued */
  __u64 end_ns;
};

/* Without delays. False if the tenancy it belongs to is over. */
KV_INLINE bool account_operations(struct kv_identity id, __u32 dev, __u32 op, __u64 operations, __u64 bytes) {
  struct kv_counter* counter = counter_cell(id, KV_DISK_STORAGE, dev, op);

  if (!counter) return false;
  if (operations) __sync_fetch_and_add(&counter->count, operations);
  if (bytes) __sync_fetch_and_add(&counter->sum, bytes);
  return true;
}

/* False if the tenancy it belongs to is over. */
KV_INLINE bool account(const struct finished* done) {
  __u32 kind = 0;

  if (!account_operations(done->id, done->dev, done->op, done->operations, done->bytes)) return false;
  if (!done->operations || !done->start_ns) return true;

  void* inner = bpf_map_lookup_elem(&histograms, &done->id.slot);
  if (!inner) return true;
  struct kv_header* headers = bpf_map_lookup_elem(inner, &kind);
  if (!headers || headers->generation != done->id.generation) return true;
  __u64 issue_ns = done->issue_ns ? done->issue_ns : done->start_ns;
  __u32 index = cell_index(&headers[KV_DISK_STORAGE_DURATION], done->dev, done->op);
  struct kv_histogram* cell = bpf_map_lookup_elem(inner, &index);
  if (cell) add_delay(cell, done->end_ns > issue_ns ? done->end_ns - issue_ns : 0);
  if (!done->issue_ns) return true;
  index = cell_index(&headers[KV_DISK_QUEUE_DURATION], done->dev, done->op);
  cell = bpf_map_lookup_elem(inner, &index);
  if (cell) add_delay(cell, issue_ns > done->start_ns ? issue_ns - done->start_ns : 0);
  return true;
}

KV_INLINE struct kv_slot_info* info_of(struct kv_identity id) {
  struct kv_slot_info* info = bpf_map_lookup_elem(&slot_info, &id.slot);

  return info && *(volatile __u32*)&info->generation == id.generation ? info : 0;
}

/* Room in a ring for one record, or a drop counted for its tenant alone. */
KV_INLINE void* reserve_event(__u32 tenant, __u64 size) {
  void* record = 0;
  void* ring = bpf_map_lookup_elem(&events, &tenant);

  /* Two calls because the size must be a constant. */
  if (ring)
    record = size == sizeof(struct kv_event_process)
                 ? bpf_ringbuf_reserve(ring, sizeof(struct kv_event_process), 0)
                 : bpf_ringbuf_reserve(ring, sizeof(struct kv_event_io_error), 0);
  if (!record) {
    __u64* drops = bpf_map_lookup_elem(&ring_drops, &tenant);
    if (drops) __sync_fetch_and_add(drops, 1);
  }
  return record;
}

/* The kernel's ways to say what went wrong: BLK_STS_* of include/linux/blk_types.h, and the errno that
 * belongs to each in block/blk-core.c. */
KV_INLINE enum kv_error status_kind(__u32 status) {
  switch (status & 0xff) {
    case 1:
      return KV_ERROR_NOTSUPP;
    case 2:
      return KV_ERROR_TIMEOUT;
    case 3:
      return KV_ERROR_NOSPC;
    case 4:
      return KV_ERROR_TRANSPORT;
    case 5:
      return KV_ERROR_TARGET;
    case 7:
      return KV_ERROR_MEDIUM;
    case 10:
      return KV_ERROR_IO;
    default:
      return KV_ERROR_OTHER;
  }
}

KV_INLINE enum kv_error errno_kind(int error) {
  switch (-error) {
    case 5:
      return KV_ERROR_IO;
    case 28:
      return KV_ERROR_NOSPC;
    case 61:
      return KV_ERROR_MEDIUM;
    case 67:
      return KV_ERROR_TRANSPORT;
    case 95:
      return KV_ERROR_NOTSUPP;
    case 110:
      return KV_ERROR_TIMEOUT;
    case 121:
      return KV_ERROR_TARGET;
    default:
      return KV_ERROR_OTHER;
  }
}

/* sub = op * KV_ERRORS + error */
static __noinline __attribute__((unused)) void account_error(struct kv_identity* id, __u32 dev, __u32 sub,
                                                             __u64 sector, __u32 bytes) {
  struct kv_counter* counter = counter_cell(*id, KV_DISK_ERRORS, dev, sub);

  if (!counter) return; /* the completion counts as late */
  __sync_fetch_and_add(&counter->count, 1);
  struct kv_slot_info* info = info_of(*id);
  if (!info) return;
  struct kv_event_io_error* record = reserve_event(info->tenant, sizeof(*record));
  if (!record) return;
  record->type = KV_EVENT_IO_ERROR;
  record->bytes = bytes;
  record->id = *id;
  record->sector = sector;
  record->monotonic_ns = bpf_ktime_get_ns();
  record->dev = dev;
  record->sub = sub;
  record->pad = 0;
  bpf_ringbuf_submit(record, 0);
}

/* --- which of the slot's disks?
 * ------------------------------------------------------------------------------- */

#define NO_DISK (KV_MAX_DISKS + 1)

/* The place of this key among `most`; takes a free one if asked to, else most + 1. `most` if all are others'.
 */
KV_INLINE __u32 number_of(__u64* keys, __u32 most, __u64 key, bool claim) {
  for (__u32 i = 0; i < most; i++) {
    __u64 there = *(volatile __u64*)&keys[i];
    if (there == key) return i;
    if (there) continue;
    if (!claim) return most + 1;
    there = __sync_val_compare_and_swap(&keys[i], 0, key);
    if (!there || there == key) return i;
  }
  return claim ? most : most + 1;
}

__noinline __u32 disk_number(struct kv_slot_info* info, __u64 key, bool claim) {
  return info ? number_of(info->disk_keys, KV_MAX_DISKS, key, claim) : NO_DISK;
}

extern const void iomap_dio_bio_end_io __ksym __weak;
extern const void bio_chain_endio __ksym __weak;

/* The bio that this one was split off from (block/blk-merge.c: the rest is the parent). */
static __noinline struct bio* unsplit(struct bio* bio) {
  for (int i = 0; i < KV_SPLITS; i++) {
    if ((__u64)BPF_CORE_READ(bio, bi_end_io) != (__u64)&bio_chain_endio) break;
    bio = BPF_CORE_READ((struct bio*)bio, bi_private);
  }
  return bio;
}

KV_INLINE __u64 inode_key(struct inode* inode) {
  struct super_block* sb = BPF_CORE_READ(inode, i_sb);
  return kv_disk_key(BPF_CORE_READ(sb, s_dev), BPF_CORE_READ(inode, i_ino));
}

/* The file whose page cache the bio fills or empties, if any. Memory of the guest that is a file of its own
 * (memfd, hugetlbfs) has no block device below. */
KV_INLINE struct inode* cached_file(struct bio* bio) {
  unsigned long head, mapping;

  if (!bpf_core_field_exists(struct page, mapping) || !bio->bi_vcnt) return 0;
  struct page* page = BPF_CORE_READ(bio, bi_io_vec, bv_page);
  if (!page) return 0;
  if (bpf_core_field_exists(struct page, compound_head)) {
    head = BPF_CORE_READ(page, compound_head);
    if (head & 1) page = (struct page*)(head - 1);
  }
  mapping = (unsigned long)BPF_CORE_READ(page, mapping);
  if (!mapping || mapping & 3) return 0; /* anonymous memory: direct I/O */
  struct inode* inode = BPF_CORE_READ((struct address_space*)mapping, host);
  if (!inode || (BPF_CORE_READ(inode, i_mode) & 0170000) != 0100000) return 0;
  return BPF_CORE_READ(inode, i_sb, s_bdev) ? inode : 0;
}

static __noinline __u32 unlisted_disk(struct bio* bio, struct kv_slot_info* info, __u64 device_key) {
  struct inode* inode = cached_file(bio);

  if (!inode) return disk_number(info, device_key, true);
  __u32 dev = disk_number(info, inode_key(inode), false);
  if (dev == NO_DISK) count_stat(KV_STAT_NOT_A_DISK);
  return dev;
}

static __noinline __u32 direct_file(struct bio* bio, struct kv_slot_info* info) {
  struct iomap_dio* dio = BPF_CORE_READ(bio, bi_private);
  struct file* file = BPF_CORE_READ(dio, iocb, ki_filp);
  __u32 dev = disk_number(info, inode_key(BPF_CORE_READ(file, f_inode)), true);

  if (dev < KV_MAX_DISKS && !(*(volatile __u32*)&info->files >> dev & 1))
    __sync_fetch_and_or(&info->files, 1U << dev);
  return dev;
}

/* The VM's own number of the disk that the bio goes to; NO_DISK if it is none.
 * 1. Direct I/O on a file (fs/iomap/direct-io.c): that inode. First, because metadata that the same task
 * reads may have numbered the file system's device.
 * 2. A device that the daemon listed.
 * 3. Page cache of a file: only if that file is a known disk, else the process reads its binary or libraries.
 * 4. Any other device, numbered at first sight: the daemon decides by name what it is. */
KV_INLINE __u32 disk_of(struct kv_identity id, struct bio* bio) {
  struct kv_slot_info* info = info_of(id);
  __u32 dev;

  if (!info) return KV_MAX_DISKS;
  struct bio* whole = bio;
  __u64 end_io = (__u64)bio->bi_end_io;
  if (&bio_chain_endio && end_io == (__u64)&bio_chain_endio) {
    whole = unsplit(bio);
    end_io = (__u64)BPF_CORE_READ(whole, bi_end_io);
  }
  if (&iomap_dio_bio_end_io && end_io == (__u64)&iomap_dio_bio_end_io) {
    dev = direct_file(whole, info);
  } else {
    __u64 key = kv_disk_key(bio->bi_bdev->bd_dev, 0);
    dev = disk_number(info, key, false);
    if (dev >= KV_MAX_DISKS || !(info->listed >> dev & 1)) dev = unlisted_disk(bio, info, key);
  }
  if (dev == KV_MAX_DISKS) count_stat(KV_STAT_OTHER_DEVICE);
  return dev;
}

#endif
