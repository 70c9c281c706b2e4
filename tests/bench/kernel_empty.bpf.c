// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Programs that do nothing, on the hooks of a block request, a switch, a packet: what any program there
 * costs. */
#include <linux/bpf.h>
/* after <linux/bpf.h> */
#include <bpf/bpf_helpers.h>

SEC("tp_btf/block_io_start")
int empty_start(void* context) {
  return 0;
}

SEC("tp_btf/block_rq_issue")
int empty_issue(void* context) {
  return 0;
}

SEC("tp_btf/block_rq_complete")
int empty_complete(void* context) {
  return 0;
}

SEC("tp_btf/sched_switch")
int empty_switch(void* context) {
  return 0;
}

SEC("tp_btf/net_dev_start_xmit")
int empty_queued(void* context) {
  return 0;
}

SEC("tp_btf/net_dev_xmit")
int empty_refused(void* context) {
  return 0;
}

SEC("tp_btf/skb_copy_datagram_iovec")
int empty_taken(void* context) {
  return 0;
}

SEC("tp_btf/netif_receive_skb_entry")
int empty_sent(void* context) {
  return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
