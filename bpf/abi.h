/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the programs and the daemon share: layouts, numbers, and the two pure functions (bucket, disk key)
 * that must be the same on both sides. Fixed widths, explicit padding; tests/bpf checks the layouts against
 * the object's BTF. */
#ifndef KVMSCOPE_BPF_ABI_H
#define KVMSCOPE_BPF_ABI_H

#include <linux/types.h>

#ifdef __cplusplus
#define KV_ASSERT(condition) static_assert(condition, #condition)
#else
#define KV_ASSERT(condition) _Static_assert(condition, #condition)
#endif
#define KV_INLINE static inline __attribute__((always_inline, unused))

enum kv_limits {
  KV_MAX_VCPUS = 4096, /* a larger number is not a vCPU's */
  KV_MAX_DISKS = 32, /* disks with a number of their own in one slot; further ones get this number: "other" */
  KV_MAX_NICS = 16,  /* NICs, likewise; below 256 */
  KV_NIC_BITS = 1 << 16, /* of the filter by interface index (a power of 2) */
  KV_NIC_SAMPLED = 8,    /* one packet of so many has its wait in the tap's queue measured (a power of 2) */
  KV_QUEUES = 1024,      /* request queues known at a time, by id (a power of 2) */
  KV_VERSIONS = 4096,    /* identity versions, by tgid (a power of 2) */
  KV_TGIDS = 1 << 22,    /* PID_MAX_LIMIT */
  KV_NAMES = 8,          /* names of QEMU binaries */
  KV_NAME_BYTES = 32,    /* of one such name */
  KV_COMM_BYTES = 16,    /* TASK_COMM_LEN */
  KV_BUCKETS = 108,      /* of a histogram */
  KV_CHAIN = 256,        /* bios of one request that are looked at */
  KV_SPLITS = 8,         /* steps from a bio to the one that it was split off from */
};

/* Kinds of series, an index into every header. bpf/catalogue.cpp gives them their names outside. */
enum kv_kind {
  KV_DISK_STORAGE = 0,          /* counter by op: requests, bytes */
  KV_DISK_ERRORS = 1,           /* counter by op x error: failed requests */
  KV_DISK_STORAGE_DURATION = 2, /* histogram by op: first issue to completion */
  KV_DISK_QUEUE_DURATION = 3,   /* histogram by op: start to first issue */
  KV_VCPU_TIME = 4,             /* counter by vCPU: ns on a CPU, ns waiting for one */
  KV_VCPU_STEAL = 5,      /* counter by vCPU, kept by the daemon: ns of steal, ns throttled by a quota */
  KV_THREAD_TIME = 6,     /* counter by thread class (no vCPUs): ns on a CPU, ns waiting for one */
  KV_VCPU_SWITCHES = 7,   /* counter by vCPU: times taken off its CPU, times moved to another one */
  KV_VCPU_DELAY = 8,      /* histogram by vCPU: wait before each time on a CPU */
  KV_VCPU_EXITS = 9,      /* counter by vCPU, exit reason: exits, ns in the host's kernel to the next entry */
  KV_VCPU_EMULATION = 10, /* counter by vCPU: returns to QEMU, ns in it until the next entry */
  KV_VCPU_HALT = 11,      /* counter by vCPU and kind of halt: -, ns */
  KV_PAGING = 12,         /* counter: major page faults */
  KV_NIC_PACKETS = 13,    /* counter by NIC, direction: packets, bytes as the tap counts them */
  KV_NIC_SEGMENTS = 14,   /* counter by NIC, direction: packets on a wire that these stand for */
  KV_NIC_DROPS = 15,      /* counter by NIC, direction x reason: packets */
  KV_NIC_QUEUE = 16,      /* counter by NIC: packets handed to the tap for the guest, refused by it */
  KV_NIC_DEPTH = 17,      /* gauge by NIC, kept by the daemon: packets not taken yet; there before us */
  KV_NIC_QUEUE_DURATION = 18, /* histogram by NIC, of a sample: handed to the tap to taken from it */
  KV_GUEST_DISK = 19,         /* counter by the guest's disk, op, kept by the daemon: operations, bytes */
  KV_GUEST_DISK_TIME = 20,    /* likewise: ns */
  KV_GUEST_UNOBSERVED = 21,   /* gauge, kept by the daemon: ns that those do not cover */
  KV_KINDS = 22,
};

/* Why a vCPU left its guest: VMX's and SVM's reasons, one number for what is the same. */
enum kv_exit {
  KV_EXIT_EXCEPTION,
  KV_EXIT_INTERRUPT, /* of the host */
  KV_EXIT_NMI,
  KV_EXIT_INTERRUPT_WINDOW,
  KV_EXIT_PREEMPTION_TIMER,
  KV_EXIT_HLT,
  KV_EXIT_PAUSE,
  KV_EXIT_MWAIT,
  KV_EXIT_CPUID,
  KV_EXIT_RDTSC,
  KV_EXIT_INVLPG,
  KV_EXIT_CR,
  KV_EXIT_DR,
  KV_EXIT_IO,
  KV_EXIT_MSR_READ,
  KV_EXIT_MSR_WRITE,
  KV_EXIT_HYPERCALL,
  KV_EXIT_PAGE_FAULT,    /* of nested paging: NPF, EPT violation */
  KV_EXIT_EPT_MISCONFIG, /* VMX: MMIO */
  KV_EXIT_APIC,
  KV_EXIT_DESCRIPTOR, /* GDTR, IDTR, LDTR, TR */
  KV_EXIT_TASK_SWITCH,
  KV_EXIT_WBINVD,
  KV_EXIT_XSETBV,
  KV_EXIT_RDPMC,
  KV_EXIT_NESTED, /* the guest's own VMX or SVM instructions */
  KV_EXIT_SMI,
  KV_EXIT_SHUTDOWN, /* triple fault */
  KV_EXIT_BUS_LOCK,
  KV_EXIT_ENCRYPTED, /* SEV-ES */
  KV_EXIT_FAILED,    /* the entry failed */
  KV_EXIT_OTHER,
  KV_EXITS,
};

enum kv_halt { KV_HALT_BLOCKED, KV_HALT_POLLED, KV_HALT_POLLED_IN_VAIN, KV_HALTS };

/* Classes of a VM's threads. vCPUs have numbers of their own. */
enum kv_thread {
  KV_THREAD_IOTHREAD,
  KV_THREAD_VHOST,
  KV_THREAD_EMULATOR, /* the rest of the QEMU process */
  KV_THREAD_OTHER,    /* other processes in the VM's cgroup, children of QEMU */
  KV_THREADS,
  KV_THREAD_VCPU = KV_THREADS,
};

enum kv_op { KV_READ, KV_WRITE, KV_FLUSH, KV_DISCARD, KV_OPS };

enum kv_error {
  KV_ERROR_IO,
  KV_ERROR_TIMEOUT,
  KV_ERROR_NOSPC,
  KV_ERROR_MEDIUM,
  KV_ERROR_TRANSPORT,
  KV_ERROR_TARGET,
  KV_ERROR_NOTSUPP,
  KV_ERROR_OTHER,
  KV_ERRORS,
};

/* As the guest sees it. */
enum kv_direction { KV_RECEIVE, KV_TRANSMIT, KV_DIRECTIONS };

/* Why a packet to or from a guest was dropped (enum skb_drop_reason, as far as it is told apart here). */
enum kv_drop {
  KV_DROP_RING_FULL, /* the guest takes nothing, or too slowly */
  KV_DROP_FILTER,    /* a filter of the tap, the host's firewall, a program */
  KV_DROP_DOWN,      /* the tap is not up */
  KV_DROP_QDISC,     /* the host's queue before the tap */
  KV_DROP_MEMORY,
  KV_DROP_OTHER, /* and where the kernel gives no reasons, before 5.17 */
  KV_DROPS,
};

/* What the programs count about themselves. */
enum kv_stat {
  KV_STAT_LATE,           /* completions, packets, sums of exits, of a tenancy of the slot that is over */
  KV_STAT_UNATTRIBUTED,   /* requests (packets) of a marked process without a slot: counted in the host's */
  KV_STAT_NO_SPARE,       /* QEMU processes that found the pool of slots empty */
  KV_STAT_CARRY_FULL,     /* requests that found no place to be remembered: not counted */
  KV_STAT_BIO_FULL,       /* bios (merged, or of devices without requests) that found no place: not counted */
  KV_STAT_STORAGE_FAILED, /* identities that could not be kept with the task: resolved again each time */
  KV_STAT_NOT_A_DISK,     /* a VM process's own file reads (binary, libraries): counted nowhere else */
  KV_STAT_OTHER_DEVICE,   /* requests on a disk beyond KV_MAX_DISKS */
  KV_STAT_STALE, /* requests (and bios merged into others') whose completion was never seen: counted, without
                    delays, at the next reading or when their tag (their address) is used again */
  KV_STAT_FOREIGN_MERGED, /* bytes of others in a VM's merged request: not the VM's */
  KV_STAT_LONG_CHAIN,     /* merged requests of more than KV_CHAIN bios: the rest was not counted */
  KV_STAT_MAP_ERROR,      /* any other update of a map that failed */
  KV_STAT_LATE_TIME,      /* ns of CPU time of a tenancy of the slot that is over */
  KV_STAT_OTHER_NIC,      /* packets of a NIC beyond KV_MAX_NICS */
  KV_STATS,
};

/* A tenancy of a slot. Generation 0 is never valid. Aligned so that it is read and written as one word. */
struct kv_identity {
  __u32 slot;
  __u32 generation;
} __attribute__((aligned(8)));
KV_ASSERT(sizeof(struct kv_identity) == 8);

/* Header of an inner map, one for each kind: where its cells begin and what split them. */
struct kv_header {
  __u32 generation;
  __u32 base;
  __u16 devs;
  __u16 subs;
  __u32 incarnation;
};
KV_ASSERT(sizeof(struct kv_header) == 16);

/* A value of a counters map: the first KV_KINDS are headers. */
struct kv_counter {
  __u64 count;
  __u64 sum;
};
KV_ASSERT(sizeof(struct kv_counter) == sizeof(struct kv_header));

/* A value of a histograms map: the first one holds the headers. */
struct kv_histogram {
  __u64 sum_ns;
  __u64 counts[1 + KV_BUCKETS]; /* [0] is zero, [1 + i] bucket i */
  __u64 pad[2];
};
KV_ASSERT(sizeof(struct kv_histogram) == 896);
KV_ASSERT(sizeof(struct kv_histogram) >= KV_KINDS * sizeof(struct kv_header));

/* What a slot's programs need beside its maps. In force only for this generation. */
struct kv_slot_info {
  __u32 generation;
  __u32 tenant;
  __u32 listed;  /* bit dev: the daemon knows this disk by name; the others were numbered at first sight */
  __u32 files;   /* bit dev: seen as a file under direct I/O, which nothing but a disk's image is */
  __u32 stacked; /* bit dev: seen as a device without requests; those below it are other numbers */
  __u32 dying;   /* threads after their exit and before their last switch: they still use time */
  __u64 disk_keys[KV_MAX_DISKS]; /* index = dev; 0 = free; claimed by compare-and-swap from both sides */
  __u64 nic_keys[KV_MAX_NICS];   /* likewise */
};
KV_ASSERT(sizeof(struct kv_slot_info) == 408);

struct kv_process_key {
  __u32 tgid;
  __u32 pad;
  __u64 start_ticks; /* 10 ms since boot, as in /proc/PID/stat */
};
KV_ASSERT(sizeof(struct kv_process_key) == 16);

enum kv_process_flags {
  KV_PROCESS_FOLLOWS =
      1, /* belongs to the slot of another process: its child, or a helper bound by the daemon */
  KV_PROCESS_CHILD = 2, /* a forked child: leaves the slot when it executes something else */
};

struct kv_process {
  struct kv_identity id;
  __u32 flags;
  __u32 pad;
};
KV_ASSERT(sizeof(struct kv_process) == 16);

enum kv_task_flags {
  KV_TASK_BASED = 1, /* its totals hold: what the task had before it was watched is nobody's */
  KV_TASK_MAIN = 2,  /* of the QEMU process itself */
};

/* Where a vCPU's thread is, as far as its time there is measured. */
enum kv_place { KV_PLACE_GUEST, KV_PLACE_KERNEL, KV_PLACE_QEMU };

/* Kept with each task of a VM: its identity as resolved at `version`, and how far its totals have been
 * counted (taken forward by compare-and-swap, whoever is first). */
struct kv_task {
  struct kv_identity id;
  __u32 version;
  __u32 flags; /* enum kv_task_flags, changed by atomics */
  __u64 run_ns;
  __u64 delay_ns;
  __u64 major_faults;
  __u64 slice_delay_ns; /* the delay at the end of its last time on a CPU */
  __u32 cpu;            /* 1 + the CPU that it was on then; 0: not yet */
  __u16 vcpu;           /* of KV_THREAD_VCPU */
  __u8 thread;          /* enum kv_thread */
  __u8 pad[5];
  struct kv_identity dying; /* whose `dying` counts it: from its exit on it is no other's */
};
KV_ASSERT(sizeof(struct kv_task) == 72);

/* Kept with each vCPU's thread under KVM: what it does now, and what it has done since that was last counted
 * in its slot. There is one exit after the other in hot paths where nothing is in the caches: they touch this
 * alone. */
struct kv_vcpu {
  __u64 since_ns; /* it is there, or back on a CPU */
  __u64 spent_ns; /* there, before it was last taken off the CPU */
  __u32 place;    /* enum kv_place */
  __u32 exit;     /* enum kv_exit, the last one */
  __u32 isa;      /* KVM_ISA_*, as of the first exit; 0: none yet */
  __u32 pad;
  struct kv_counter exits[KV_EXITS]; /* added to and taken by atomics, as is what follows */
  struct kv_counter emulation;
  __u64 halted_ns[KV_HALTS];
  __u64 halt_ns[KV_HALTS]; /* KVM's own totals as far as they are in halted_ns */
  __u64 kvm;               /* struct kvm_vcpu, as long as the thread is in KVM */
};
KV_ASSERT(sizeof(struct kv_vcpu) == 32 + 16 * (KV_EXITS + 1) + 16 * KV_HALTS + 8);

enum kv_carry_flags {
  KV_CARRY_PARTIAL = 1,  /* a part has completed: first bio, sector and length have moved on */
  KV_CARRY_MIXED = 2,    /* holds bios of others, too: walk the chain */
  KV_CARRY_FAILED = 4,   /* the error is counted */
  KV_CARRY_REQUEUED = 8, /* will be issued again */
};

/* A request under way: one cache line. */
struct kv_carry {
  __u64 rq;       /* the request's address */
  __u64 start_ns; /* 0 = free */
  __u64 issue_ns; /* first issue; 0 = not yet */
  struct kv_identity id;
  __u64 bio; /* the first of the VM's own; from issue on sector and length cover all of them */
  __u64 sector;
  __u32 length;
  __u16 dev;
  __u8 op;
  __u8 flags;
  __u64 bytes; /* completed well so far */
};
KV_ASSERT(sizeof(struct kv_carry) == 64);

enum kv_bio_flags {
  KV_BIO_PART = 1,   /* of an operation that its request's carry counts */
  KV_BIO_DEVICE = 2, /* on a device without requests */
};

/* A bio under way that no carry stands for: merged into a request, waiting for one (getrq), or on a device
 * without requests. Believed only where sector and length are the bio's, too: its address may be another's.
 */
struct kv_bio {
  __u64 start_ns;
  __u64 rq; /* the request of others that took it along; 0 = not issued yet */
  struct kv_identity id;
  __u64 sector;
  __u32 length;
  __u16 dev;
  __u8 op;
  __u8 flags;
};
KV_ASSERT(sizeof(struct kv_bio) == 40);

/* Whose a tap is, as one word: read and written at once. */
KV_INLINE __u64 kv_nic_owner(struct kv_identity id, __u32 dev) {
  __u64 owner = id.generation;

  return (owner << 24 | (id.slot & 0xffffff)) << 8 | (dev & 0xff);
}
KV_INLINE struct kv_identity kv_nic_identity(__u64 owner) {
  struct kv_identity id;

  id.slot = owner >> 8 & 0xffffff;
  id.generation = owner >> 32;
  return id;
}
KV_INLINE __u32 kv_nic_number(__u64 owner) {
  return owner & 0xff;
}

/* A packet in a tap's queue whose wait is measured. */
struct kv_queued {
  __u64 nic; /* its key: the packet's address may be another's */
  __u64 since_ns;
};
KV_ASSERT(sizeof(struct kv_queued) == 16);

enum kv_queue_state { KV_QUEUE_FREE, KV_QUEUE_BUSY, KV_QUEUE_READY, KV_QUEUE_NO_ROOM };

/* A request queue and its region of carries: [base, base + hctxs * depth). */
struct kv_queue {
  __u64 queue; /* its address */
  __u32 state;
  __u32 base;
  __u32 depth;
  __u32 hctxs;
  __u32 size; /* of the region, that a later queue of this id takes over if it fits */
  __u32 pad;
};
KV_ASSERT(sizeof(struct kv_queue) == 32);

/* What all programs and the daemon share beside the maps. */
struct kv_globals {
  /* Which thread groups belong to VMs: the filter that a foreign task meets first. */
  __u64 vm_tgids[KV_TGIDS / 64];
  __u64 stats[KV_STATS];
  /* Which interface indexes may be taps of VMs: what a packet of all others meets. */
  __u64 nic_indexes[KV_NIC_BITS / 64];
  /* Entries in `carry_overflow` and `bios`: while 0, nobody looks there. */
  __s64 overflow_live;
  __s64 bios_live;
  /* Request queues and their regions in `carries`. */
  struct kv_queue queues[KV_QUEUES];
  /* What a resolved identity was resolved at: the daemon writes the identity first and bumps the version
   * after. */
  __u32 versions[KV_VERSIONS];
  __u32 carry_cursor;
  __u32 spare_count;
  /* 1 once KVM's tracepoints have programs: before, nobody asks at a switch where a vCPU is. */
  __u32 kvm_live;
  __u32 pad;
};

/* A name to compare in four words: matches if (name ^ text) & mask is 0. An unused one has no mask and is
 * skipped. */
struct kv_name {
  __u64 text[KV_NAME_BYTES / 8];
  __u64 mask[KV_NAME_BYTES / 8];
};
KV_ASSERT(sizeof(struct kv_name) == 64);

enum kv_event_type {
  KV_EVENT_CLAIMED = 1,
  KV_EVENT_EXITED = 2,
  KV_EVENT_NO_SPARE = 3,
  KV_EVENT_IO_ERROR = 4
};

/* Records of the rings. */
struct kv_event_process {
  __u32 type;
  __u32 status; /* of KV_EVENT_EXITED: as wait() gives it */
  struct kv_process_key process;
  struct kv_identity id;
  char comm[KV_COMM_BYTES];
  __u64 monotonic_ns;
};
KV_ASSERT(sizeof(struct kv_event_process) == 56);

struct kv_event_io_error {
  __u32 type;
  __u32 bytes;
  struct kv_identity id;
  __u64 sector;
  __u64 monotonic_ns;
  __u16 dev;
  __u16 sub;
  __u32 pad;
};
KV_ASSERT(sizeof(struct kv_event_io_error) == 40);

/* Upper ends of the buckets at OTLP scale 2 in seconds, in ns: floor(1e9 * 2^((k - 80) / 4)). A whole number
 * of ns exceeds the true bound exactly if it exceeds its floor. tests/unit/bpf proves each one in integers.
 */
static const __u64 kv_bounds[KV_BUCKETS + 1] = {
    953ULL,          1134ULL,        1348ULL,        1603ULL,        1907ULL,        2268ULL,
    2697ULL,         3207ULL,        3814ULL,        4536ULL,        5394ULL,        6415ULL,
    7629ULL,         9072ULL,        10789ULL,       12831ULL,       15258ULL,       18145ULL,
    21579ULL,        25662ULL,       30517ULL,       36291ULL,       43158ULL,       51324ULL,
    61035ULL,        72583ULL,       86316ULL,       102648ULL,      122070ULL,      145166ULL,
    172633ULL,       205296ULL,      244140ULL,      290333ULL,      345266ULL,      410593ULL,
    488281ULL,       580667ULL,      690533ULL,      821187ULL,      976562ULL,      1161335ULL,
    1381067ULL,      1642375ULL,     1953125ULL,     2322670ULL,     2762135ULL,     3284751ULL,
    3906250ULL,      4645340ULL,     5524271ULL,     6569503ULL,     7812500ULL,     9290680ULL,
    11048543ULL,     13139006ULL,    15625000ULL,    18581361ULL,    22097086ULL,    26278012ULL,
    31250000ULL,     37162722ULL,    44194173ULL,    52556025ULL,    62500000ULL,    74325444ULL,
    88388347ULL,     105112051ULL,   125000000ULL,   148650889ULL,   176776695ULL,   210224103ULL,
    250000000ULL,    297301778ULL,   353553390ULL,   420448207ULL,   500000000ULL,   594603557ULL,
    707106781ULL,    840896415ULL,   1000000000ULL,  1189207115ULL,  1414213562ULL,  1681792830ULL,
    2000000000ULL,   2378414230ULL,  2828427124ULL,  3363585661ULL,  4000000000ULL,  4756828460ULL,
    5656854249ULL,   6727171322ULL,  8000000000ULL,  9513656920ULL,  11313708498ULL, 13454342644ULL,
    16000000000ULL,  19027313840ULL, 22627416997ULL, 26908685288ULL, 32000000000ULL, 38054627680ULL,
    45254833995ULL,  53817370576ULL, 64000000000ULL, 76109255360ULL, 90509667991ULL, 107634741152ULL,
    128000000000ULL,
};

/* Index into kv_histogram.counts: 0 up to 2^-20 s; 1 + i for (2^((i-80)/4) s, 2^((i-79)/4) s]; the last for
 * more. */
KV_INLINE __u32 kv_bucket(__u64 ns) {
  __u64 rest = ns;
  __u32 octave = 0;
  __u32 first;

  if (ns < 1024) return ns > kv_bounds[0];
  if (ns > kv_bounds[KV_BUCKETS]) return KV_BUCKETS;
  if (rest >> 32) octave = 32, rest >>= 32;
  if (rest >> 16) octave += 16, rest >>= 16;
  if (rest >> 8) octave += 8, rest >>= 8;
  if (rest >> 4) octave += 4, rest >>= 4;
  if (rest >> 2) octave += 2, rest >>= 2;
  if (rest >> 1) octave += 1;
  /* 2^octave <= ns: 4 * octave - 39 bounds lie below 2^octave, and four in [2^octave, 2^(octave + 1)). */
  first = 4 * octave - 39;
  if (first > KV_BUCKETS - 3) first = KV_BUCKETS - 3;
  first += (ns > kv_bounds[first]) + (ns > kv_bounds[first + 1]) + (ns > kv_bounds[first + 2]) +
           (ns > kv_bounds[first + 3]);
  return first;
}

/* Key of a NIC: its tap, by the number of its network namespace and its index there. Never 0. */
KV_INLINE __u64 kv_nic_key(__u32 netns, __u32 ifindex) {
  __u64 key = netns;

  return key << 32 | ifindex;
}

/* Key of a disk: dev as the kernel has it (major << 20 | minor), inode 0 for the block device itself.
 * splitmix64: bijective in the inode, so two files of one file system never share a key. Never 0. */
KV_INLINE __u64 kv_disk_key(__u32 dev, __u64 inode) {
  __u64 x = inode ^ (dev * 0x9E3779B97F4A7C15ULL);

  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  x ^= x >> 31;
  return x ? x : 1;
}

#endif
