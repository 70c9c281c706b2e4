/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Includes of every part of the programs, in the one order that works. */
#ifndef KVMSCOPE_BPF_PROGRAMS_BPF_H
#define KVMSCOPE_BPF_PROGRAMS_BPF_H

#include "kernel_types.h"
/* after the types that it relies on */
#include <linux/bpf.h>
/* after <linux/bpf.h> */
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "abi.h"

#endif
