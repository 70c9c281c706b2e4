/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The kernel's own types, as little of each as the programs read: CO-RE finds the real offsets at load.
 * Written by hand so that the objects build on machines without BTF. Run on 6.18; members that other kernels
 * lack are asked for first. */
#ifndef KVMSCOPE_BPF_KERNEL_TYPES_H
#define KVMSCOPE_BPF_KERNEL_TYPES_H

#include <linux/types.h>

typedef _Bool bool;
enum { false = 0, true = 1 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* Processes and cgroups. */
typedef struct {
  int counter;
} atomic_t;

struct signal_struct {
  atomic_t live;
  int group_exit_code;
};

struct kernfs_node {
  __u64 id;
};

struct cgroup;
struct cgroup_subsys_state {
  struct cgroup* cgroup;
  struct cgroup_subsys_state* parent;
};

struct cgroup {
  struct cgroup_subsys_state self;
  struct kernfs_node* kn;
};

struct css_set {
  struct cgroup* dfl_cgrp;
};

struct sched_info {
  unsigned long long run_delay;
};

struct sched_entity {
  __u64 sum_exec_runtime;
};

struct task_struct {
  unsigned int __state;
  int pid;
  int tgid;
  char comm[16];
  struct sched_entity se;
  struct sched_info sched_info;
  struct task_struct* group_leader;
  __u64 start_boottime;
  struct signal_struct* signal;
  struct css_set* cgroups;
  unsigned int flags;
  unsigned long maj_flt;
  int exit_code;
};

struct task_struct___5_13 { /* __state since 2f064a59a11f */
  long state;
};

/* KVM, of the modules' BTF. */
struct kvm_vcpu_stat_generic {
  __u64 halt_poll_success_ns;
  __u64 halt_poll_fail_ns;
  __u64 halt_wait_ns;
};

struct kvm_vcpu_stat {
  struct kvm_vcpu_stat_generic generic;
};

struct kvm_vcpu {
  int vcpu_id;
  int vcpu_idx;
  struct kvm_vcpu_stat stat;
};

struct vmcb_control_area {
  __u32 exit_code;
  __u64 exit_info_1;
};

struct vmcb {
  struct vmcb_control_area control;
};

struct vcpu_svm {
  struct kvm_vcpu vcpu;
  struct vmcb* vmcb;
};

union vmx_exit_reason {
  __u32 full;
};

struct vcpu_vmx {
  struct kvm_vcpu vcpu;
  union vmx_exit_reason exit_reason;
};

struct vcpu_vt {
  union vmx_exit_reason exit_reason;
};

struct vcpu_vmx___vt { /* later kernels */
  struct vcpu_vt vt;
};

struct bpf_iter__task {
  struct task_struct* task;
};

/* Files. */
struct super_block {
  __u32 s_dev;
  struct block_device* s_bdev;
};

struct inode {
  __u16 i_mode;
  struct super_block* i_sb;
  unsigned long i_ino;
};

struct qstr {
  const unsigned char* name;
};

struct dentry {
  struct qstr d_name;
};

struct path {
  struct dentry* dentry;
};

struct file {
  struct path f_path;
  struct inode* f_inode;
};

struct kiocb {
  struct file* ki_filp;
};

struct iomap_dio {
  struct kiocb* iocb;
};

struct linux_binprm {
  struct file* file;
};

struct address_space {
  struct inode* host;
};

struct page {
  unsigned long compound_head;
  struct address_space* mapping;
};

/* The block layer. */
struct bio_vec {
  struct page* bv_page;
};

struct request_queue;
struct gendisk {
  struct request_queue* queue;
};

struct block_device {
  __u32 bd_dev;
  struct gendisk* bd_disk;
};

struct bvec_iter {
  __u64 bi_sector;
  unsigned int bi_size;
};

struct bio {
  struct bio* bi_next;
  struct block_device* bi_bdev;
  unsigned int bi_opf;
  unsigned char bi_status;
  struct bvec_iter bi_iter;
  void* bi_end_io;
  void* bi_private;
  unsigned short bi_vcnt;
  struct bio_vec* bi_io_vec;
};

struct blk_mq_hw_ctx {
  unsigned int queue_num;
};

struct blk_mq_tag_set {
  unsigned int queue_depth;
  void* shared_tags; /* one set of tags for all hardware queues */
};

struct request_queue {
  const void* mq_ops;
  int id;
  unsigned int nr_hw_queues;
  unsigned long nr_requests;
  struct blk_mq_tag_set* tag_set;
};

struct request {
  struct request_queue* q;
  struct blk_mq_hw_ctx* mq_hctx;
  unsigned int cmd_flags;
  int tag;
  int internal_tag;
  unsigned int __data_len;
  __u64 __sector;
  struct bio* bio;
  struct bio* biotail;
  __u64 io_start_time_ns;
  struct {
    int counter;
  } ref; /* 0: freed. atomic_t; refcount_t of the same layout before 5.16 */
};

/* Networking. */
struct ns_common {
  unsigned int inum;
};

struct net {
  struct ns_common ns;
};

typedef struct {
  struct net* net;
} possible_net_t;

struct rtnl_link_ops {
  const char* kind;
};

struct net_device {
  int ifindex;
  unsigned short type;
  possible_net_t nd_net;
  const struct rtnl_link_ops* rtnl_link_ops;
};

struct sk_buff {
  struct net_device* dev;
  unsigned int len;
  int skb_iif;
  __u16 transport_header;
  __u16 mac_header;
  unsigned int end; /* an offset on 64-bit machines */
  unsigned char* head;
  __u8 pkt_type : 3;
};

struct skb_shared_info {
  unsigned short gso_size;
  unsigned short gso_segs;
  unsigned int gso_type;
};

/* Its numbers are others on every kernel. */
enum skb_drop_reason {
  SKB_DROP_REASON_NETFILTER_DROP = 12,
  SKB_DROP_REASON_QDISC_DROP,
  SKB_DROP_REASON_QDISC_OVERLIMIT,
  SKB_DROP_REASON_QDISC_CONGESTED,
  SKB_DROP_REASON_PACKET_SOCK_ERROR,
  SKB_DROP_REASON_NOMEM,
  SKB_DROP_REASON_SKB_UCOPY_FAULT,
  SKB_DROP_REASON_DEV_READY,
  SKB_DROP_REASON_FULL_RING,
  SKB_DROP_REASON_TC_INGRESS,
  SKB_DROP_REASON_TC_EGRESS,
  SKB_DROP_REASON_XDP,
  SKB_DROP_REASON_TAP_FILTER,
  SKB_DROP_REASON_TAP_TXFILTER,
};

enum req_flag_bits {
  __REQ_PREFLUSH = 18,
};

#pragma clang attribute pop

#endif
