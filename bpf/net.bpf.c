// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* Packets of VMs at their taps, counted where the tap counts them.
 *
 * To the guest: handed to the tap by whoever sends (another VM, an interrupt), which puts it into its ring;
 * counted when the VM's own thread (QEMU's, vhost's) takes it out. From the guest: the VM's own thread hands
 * it to the host's network. So the tenant is that of the thread, and the thread tells which tap is the VM's
 * before anybody has said so. Only drops happen in others' contexts: there the tap itself says whose it is.
 */
#include "account.bpf.h"
#include "identity.bpf.h"

#define ETH_HLEN 14
#define ARPHRD_ETHER 1
#define VLAN_TAG 4
#define BEFORE_TAG 12 /* offsetof(struct vlan_ethhdr, h_vlan_proto) */
#define GSO_UDP_L4 (1 << 17)
#define PACKET_OUTGOING 4 /* linux/if_packet.h */

KV_INLINE __u64 key_of_nic(const struct net_device* dev) {
  struct net* net = dev->nd_net.net;

  return net ? kv_nic_key(net->ns.inum, dev->ifindex) : 0;
}

KV_INLINE bool may_be_nic(__u32 ifindex) {
  return globals.nic_indexes[(ifindex / 64) % (KV_NIC_BITS / 64)] >> (ifindex % 64) & 1;
}

/* 0: no VM's. */
KV_INLINE __u64 owner_of(const struct net_device* dev) {
  if (!may_be_nic(dev->ifindex)) return 0;
  __u64 key = key_of_nic(dev);
  __u64* owner = bpf_map_lookup_elem(&nics, &key);
  return owner ? *(volatile __u64*)owner : 0;
}

static __noinline bool is_tap(const struct net_device* dev) {
  char kind[4] = {};

  if (dev->type != ARPHRD_ETHER) return false;
  bpf_probe_read_kernel_str(kind, sizeof(kind), BPF_CORE_READ(dev, rtnl_link_ops, kind));
  return kind[0] == 't' && kind[1] == 'u' && kind[2] == 'n' && !kind[3];
}

__noinline __u32 nic_number(struct kv_slot_info* info, __u64 key) {
  return info ? number_of(info->nic_keys, KV_MAX_NICS, key, true) : KV_MAX_NICS;
}

/* A tap's first packet in this VM's hands. It becomes the VM's, unless it is another's who is there: only the
 * daemon knows better. No slot has more of them than it numbers apart, or one tenant could fill the map. */
static __noinline __u64 meet_nic(const struct net_device* dev, __u64 key, struct kv_identity* id,
                                 __u64 known) {
  __u32 ifindex = dev->ifindex;

  struct kv_slot_info* info = info_of(*id);
  if (!info) return 0;
  __u32 number = nic_number(info, key);
  __u64 owner = kv_nic_owner(*id, number);
  struct kv_identity other = kv_nic_identity(known);
  if (number == KV_MAX_NICS || (other.slot && info_of(other))) return owner;
  if (bpf_map_update_elem(&nics, &key, &owner, BPF_ANY)) {
    count_stat(KV_STAT_MAP_ERROR);
    return owner;
  }
  __sync_fetch_and_or(&globals.nic_indexes[(ifindex / 64) % (KV_NIC_BITS / 64)], 1ULL << (ifindex % 64));
  return owner;
}

/* Whose thread is at work with this device? 0: no VM's, or the device is no tap. */
KV_INLINE __u64 owner_at_work(const struct net_device* dev) {
  __u32 tgid = bpf_get_current_pid_tgid() >> 32;
  struct kv_identity id = {};

  if (!is_vm(tgid) || !dev) return 0;
  __u64 key = key_of_nic(dev);
  __u64* known = bpf_map_lookup_elem(&nics, &key);
  __u64 owner = known ? *(volatile __u64*)known : 0;
  if (!owner && !is_tap(dev)) return 0;
  resolve_current(tgid, &id);
  struct kv_identity was = kv_nic_identity(owner);
  if (!owner || was.slot != id.slot || was.generation != id.generation) {
    if (owner && !is_tap(dev)) return 0; /* the index was a tap's before */
    owner = meet_nic(dev, key, &id, owner);
  }
  if (owner && kv_nic_number(owner) == KV_MAX_NICS) count_stat(KV_STAT_OTHER_NIC);
  return owner;
}

/* How many packets this one is on a wire. A guest's has no count, only a size (virtio_net_hdr). `bytes`: with
 * its Ethernet header. */
static __noinline __u32 segments_of(const struct sk_buff* skb, __u32 bytes) {
  unsigned char* head = skb->head;
  struct skb_shared_info* shared = (void*)(head + skb->end);
  __u32 size = BPF_CORE_READ(shared, gso_size);
  __u32 segments = BPF_CORE_READ(shared, gso_segs);
  __u32 transport = skb->transport_header;
  __u8 words = 0;

  if (!size) return 1;
  if (segments) return segments;
  __u32 header = transport - skb->mac_header + 8;
  if (!(BPF_CORE_READ(shared, gso_type) & GSO_UDP_L4)) {
    bpf_probe_read_kernel(&words, 1, head + transport + 12); /* of TCP: its length */
    header += (words >> 4) * 4 - 8;
  }
  return bytes > header ? (bytes - header + size - 1) / size : 1;
}

KV_INLINE void count_packet(__u64 owner, const struct sk_buff* skb, __u32 direction, __u32 bytes) {
  struct kv_identity id = kv_nic_identity(owner);
  __u32 nic = kv_nic_number(owner);
  struct kv_counter* cell = counter_cell(id, KV_NIC_PACKETS, nic, direction);

  if (!cell) {
    count_stat(KV_STAT_LATE);
    return;
  }
  __sync_fetch_and_add(&cell->count, 1);
  __sync_fetch_and_add(&cell->sum, bytes);
  cell = counter_cell(id, KV_NIC_SEGMENTS, nic, direction);
  if (cell) __sync_fetch_and_add(&cell->count, segments_of(skb, bytes));
}

/* --- to the guest */

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(kv_net_queued, const struct sk_buff* skb, const struct net_device* dev) {
  __u64 owner = owner_of(dev);

  if (!owner) return 0;
  struct kv_counter* cell = counter_cell(kv_nic_identity(owner), KV_NIC_QUEUE, kv_nic_number(owner), 0);
  if (!cell || __sync_fetch_and_add(&cell->count, 1) % KV_NIC_SAMPLED) return 0;
  struct kv_queued begun = {.nic = key_of_nic(dev), .since_ns = bpf_ktime_get_ns()};
  __u64 address = (__u64)skb;
  if (bpf_map_update_elem(&queued, &address, &begun, BPF_ANY)) count_stat(KV_STAT_MAP_ERROR);
  return 0;
}

/* The tap did not take it. The packet is gone already. */
SEC("tp_btf/net_dev_xmit")
int BPF_PROG(kv_net_refused, struct sk_buff* skb, int result, struct net_device* dev) {
  if (!result) return 0;
  __u64 owner = owner_of(dev);
  if (!owner) return 0;
  struct kv_counter* cell = counter_cell(kv_nic_identity(owner), KV_NIC_QUEUE, kv_nic_number(owner), 0);
  if (cell) __sync_fetch_and_add(&cell->sum, 1);
  return 0;
}

KV_INLINE void count_wait(__u64 owner, const struct sk_buff* skb) {
  struct kv_identity id = kv_nic_identity(owner);
  __u64 address = (__u64)skb;
  __u32 kind = 0;

  struct kv_queued* begun = bpf_map_lookup_elem(&queued, &address);
  if (!begun) return;
  __u64 waited_ns = bpf_ktime_get_ns() - begun->since_ns;
  bool same = begun->nic == key_of_nic(skb->dev);
  bpf_map_delete_elem(&queued, &address);
  if (!same) return;
  void* inner = bpf_map_lookup_elem(&histograms, &id.slot);
  if (!inner) return;
  struct kv_header* headers = bpf_map_lookup_elem(inner, &kind);
  if (!headers || headers->generation != id.generation) return;
  __u32 index = cell_index(&headers[KV_NIC_QUEUE_DURATION], kv_nic_number(owner), 0);
  struct kv_histogram* cell = bpf_map_lookup_elem(inner, &index);
  if (cell) add_delay(cell, waited_ns);
}

/* tun_put_user() copies a packet as one, or, if it has a tag that the guest is to see, before and after it.
 */
SEC("tp_btf/skb_copy_datagram_iovec")
int BPF_PROG(kv_net_taken, const struct sk_buff* skb, int length) {
  __u32 tag = 0;

  if (!is_vm(bpf_get_current_pid_tgid() >> 32)) return 0;
  if ((__u32)length != skb->len) {
    if ((__u32)length + BEFORE_TAG != skb->len) return 0;
    tag = VLAN_TAG;
  }
  __u64 owner = owner_at_work(skb->dev);
  if (!owner) return 0;
  count_packet(owner, skb, KV_RECEIVE, skb->len + tag);
  count_wait(owner, skb);
  return 0;
}

/* --- from the guest */

/* One that has been through a device before (redirected to this one's ingress, or back into it from an ifb)
 * is no new one. */
SEC("tp_btf/netif_receive_skb_entry")
int BPF_PROG(kv_net_sent, const struct sk_buff* skb) {
  if (skb->skb_iif) return 0;
  __u64 owner = owner_at_work(skb->dev);

  if (owner) count_packet(owner, skb, KV_TRANSMIT, skb->len + ETH_HLEN);
  return 0;
}

/* --- drops */

#define IS(reason, name)                                     \
  (bpf_core_enum_value_exists(enum skb_drop_reason, name) && \
   (reason) == bpf_core_enum_value(enum skb_drop_reason, name))

KV_INLINE __u32 drop_of(__u32 reason) {
  if (IS(reason, SKB_DROP_REASON_FULL_RING)) return KV_DROP_RING_FULL;
  if (IS(reason, SKB_DROP_REASON_TAP_FILTER) || IS(reason, SKB_DROP_REASON_TAP_TXFILTER) ||
      IS(reason, SKB_DROP_REASON_NETFILTER_DROP) || IS(reason, SKB_DROP_REASON_TC_INGRESS) ||
      IS(reason, SKB_DROP_REASON_TC_EGRESS) || IS(reason, SKB_DROP_REASON_XDP))
    return KV_DROP_FILTER;
  if (IS(reason, SKB_DROP_REASON_DEV_READY)) return KV_DROP_DOWN;
  if (IS(reason, SKB_DROP_REASON_QDISC_DROP) || IS(reason, SKB_DROP_REASON_QDISC_OVERLIMIT) ||
      IS(reason, SKB_DROP_REASON_QDISC_CONGESTED))
    return KV_DROP_QDISC;
  if (IS(reason, SKB_DROP_REASON_NOMEM) || IS(reason, SKB_DROP_REASON_SKB_UCOPY_FAULT)) return KV_DROP_MEMORY;
  return KV_DROP_OTHER;
}

/* A copy for a packet socket (tcpdump) of what leaves the host here. */
KV_INLINE bool is_sniffed(const struct sk_buff* skb) {
  return BPF_CORE_READ_BITFIELD_PROBED(skb, pkt_type) == PACKET_OUTGOING;
}

/* The packet says that it came in through the tap (__netif_receive_skb_core). Before it can say so the VM's
 * own thread drops it for these reasons alone (tun_get_user); what it drops of the tap's queue has others. */
KV_INLINE __u32 direction_of(const struct sk_buff* skb, const struct net_device* dev, __u64 owner,
                             __u32 drop) {
  __u32 tgid = bpf_get_current_pid_tgid() >> 32;
  struct kv_identity at_work = {}, id = kv_nic_identity(owner);

  if (skb->skb_iif) return skb->skb_iif == dev->ifindex ? KV_TRANSMIT : KV_RECEIVE;
  if ((drop != KV_DROP_DOWN && drop != KV_DROP_MEMORY) || !is_vm(tgid)) return KV_RECEIVE;
  resolve_current(tgid, &at_work);
  return at_work.slot == id.slot && at_work.generation == id.generation ? KV_TRANSMIT : KV_RECEIVE;
}

KV_INLINE void count_drop(const struct sk_buff* skb, __u32 drop) {
  const struct net_device* dev = skb->dev;
  __u64 address = (__u64)skb;

  if (!dev) return;
  __u64 owner = owner_of(dev);
  if (!owner || is_sniffed(skb)) return;
  __u32 direction = direction_of(skb, dev, owner, drop);
  struct kv_counter* cell =
      counter_cell(kv_nic_identity(owner), KV_NIC_DROPS, kv_nic_number(owner), direction * KV_DROPS + drop);
  if (cell) __sync_fetch_and_add(&cell->count, 1);
  if (direction == KV_RECEIVE) bpf_map_delete_elem(&queued, &address);
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(kv_net_dropped, const struct sk_buff* skb, void* location, __u32 reason) {
  if (IS(reason, SKB_DROP_REASON_PACKET_SOCK_ERROR)) return 0;
  count_drop(skb, drop_of(reason));
  return 0;
}

/* Without a reason: before c504e5c2f964 (5.17). */
SEC("tp_btf/kfree_skb")
int BPF_PROG(kv_net_dropped2, const struct sk_buff* skb) {
  count_drop(skb, KV_DROP_OTHER);
  return 0;
}
