// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The programs' own bucket function, run by the test on values of its choice. */
#include <linux/bpf.h>
/* after <linux/bpf.h> */
#include <bpf/bpf_helpers.h>

#include "abi.h"

enum { VALUES = 1024 };

__u64 delays_ns[VALUES];
__u32 buckets[VALUES];

__noinline __u32 bucket_of(__u64 ns) {
  return kv_bucket(ns);
}

SEC("syscall")
int find_buckets(void* context) {
  for (__u32 i = 0; i < VALUES; i++) buckets[i] = bucket_of(delays_ns[i]);
  return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
