// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* All programs of the daemon are one object, because they share every map and global. Each part is a file. */
#include "programs.bpf.h"
/* the maps, then what uses them */
#include "maps.bpf.h"
/* accounting: the slot's own cells and the tenant's ring */
#include "account.bpf.h"
/* identity: the map of tasks to slots */
#include "identity.bpf.h"
/* the probes */
#include "bio.bpf.c"
#include "block.bpf.c"
#include "net.bpf.c"
#include "process.bpf.c"
#include "sched.bpf.c"

/* Types that only pointers lead to would miss in the object's BTF, where the tests compare layouts. */
struct kv_layouts {
  struct kv_counter counter;
  struct kv_header header;
  struct kv_histogram histogram;
  struct kv_event_process process;
  struct kv_event_io_error io_error;
};
struct kv_layouts* layouts SEC(".data.layouts");

char LICENSE[] SEC("license") = "Dual BSD/GPL";
