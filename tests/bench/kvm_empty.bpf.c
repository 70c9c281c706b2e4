// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Programs that do nothing, on the hooks of a vCPU's exit and entry. */
#include <linux/bpf.h>
/* after <linux/bpf.h> */
#include <bpf/bpf_helpers.h>

SEC("tp_btf/kvm_exit")
int empty_exit(void* context) {
  return 0;
}

SEC("tp_btf/kvm_entry")
int empty_entry(void* context) {
  return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
