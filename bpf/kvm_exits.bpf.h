/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Exit reasons of the processors (arch/x86/include/uapi/asm/vmx.h and svm.h) as ours. Pure but for the last
 * one: a unit test goes through them, too. */
#ifndef KVMSCOPE_BPF_KVM_EXITS_BPF_H
#define KVMSCOPE_BPF_KVM_EXITS_BPF_H

#include "abi.h"

#define KVM_ISA_VMX 1
#define KVM_ISA_SVM 2

KV_INLINE __u32 vmx_exit(__u32 full) {
  if (full >> 31) return KV_EXIT_FAILED;
  switch (full & 0xffff) {
    case 0:
      return KV_EXIT_EXCEPTION;
    case 1:
    case 3:
    case 4:
      return KV_EXIT_INTERRUPT;
    case 2:
      return KV_EXIT_SHUTDOWN;
    case 5:
    case 6:
    case 17:
      return KV_EXIT_SMI;
    case 7:
    case 8:
      return KV_EXIT_INTERRUPT_WINDOW;
    case 9:
      return KV_EXIT_TASK_SWITCH;
    case 10:
      return KV_EXIT_CPUID;
    case 12:
      return KV_EXIT_HLT;
    case 13:
    case 54:
      return KV_EXIT_WBINVD;
    case 14:
    case 58:
      return KV_EXIT_INVLPG;
    case 15:
      return KV_EXIT_RDPMC;
    case 16:
    case 51:
      return KV_EXIT_RDTSC;
    case 18:
      return KV_EXIT_HYPERCALL;
    case 19:
    case 20:
    case 21:
    case 22:
    case 23:
    case 24:
    case 25:
    case 26:
    case 27:
    case 50:
    case 53:
      return KV_EXIT_NESTED;
    case 28:
      return KV_EXIT_CR;
    case 29:
      return KV_EXIT_DR;
    case 30:
      return KV_EXIT_IO;
    case 31:
      return KV_EXIT_MSR_READ;
    case 32:
      return KV_EXIT_MSR_WRITE;
    case 33:
    case 34:
    case 41:
      return KV_EXIT_FAILED;
    case 36:
    case 39:
      return KV_EXIT_MWAIT;
    case 40:
      return KV_EXIT_PAUSE;
    case 43:
    case 44:
    case 45:
    case 56:
      return KV_EXIT_APIC;
    case 46:
    case 47:
      return KV_EXIT_DESCRIPTOR;
    case 48:
      return KV_EXIT_PAGE_FAULT;
    case 49:
      return KV_EXIT_EPT_MISCONFIG;
    case 52:
      return KV_EXIT_PREEMPTION_TIMER;
    case 55:
      return KV_EXIT_XSETBV;
    case 74:
      return KV_EXIT_BUS_LOCK;
    default:
      return KV_EXIT_OTHER;
  }
}

KV_INLINE __u32 svm_exit(__u32 code, int write) {
  if (code < 0x20) return KV_EXIT_CR;
  if (code < 0x40) return KV_EXIT_DR;
  if (code < 0x60) return KV_EXIT_EXCEPTION;
  if (code >= 0x66 && code <= 0x6d) return KV_EXIT_DESCRIPTOR;
  switch (code) {
    case 0x60:
    case 0x63: /* INIT */
      return KV_EXIT_INTERRUPT;
    case 0x61:
      return KV_EXIT_NMI;
    case 0x62:
    case 0x73: /* RSM */
      return KV_EXIT_SMI;
    case 0x64: /* VINTR */
    case 0x74: /* IRET: an NMI may come again */
      return KV_EXIT_INTERRUPT_WINDOW;
    case 0x65: /* CR0 of more than TS and MP */
      return KV_EXIT_CR;
    case 0x6e:
    case 0x87:
      return KV_EXIT_RDTSC;
    case 0x6f:
      return KV_EXIT_RDPMC;
    case 0x72:
      return KV_EXIT_CPUID;
    case 0x76:
    case 0x89:
      return KV_EXIT_WBINVD;
    case 0x77:
      return KV_EXIT_PAUSE;
    case 0x78:
      return KV_EXIT_HLT;
    case 0x79:
    case 0x7a:
    case 0xa0:
    case 0xa1:
    case 0xa2:
      return KV_EXIT_INVLPG;
    case 0x7b:
      return KV_EXIT_IO;
    case 0x7c:
      return write ? KV_EXIT_MSR_WRITE : KV_EXIT_MSR_READ;
    case 0x7d:
      return KV_EXIT_TASK_SWITCH;
    case 0x7f:
      return KV_EXIT_SHUTDOWN;
    case 0x80: /* VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT */
    case 0x82:
    case 0x83:
    case 0x84:
    case 0x85:
    case 0x86:
      return KV_EXIT_NESTED;
    case 0x81:
      return KV_EXIT_HYPERCALL;
    case 0x8a:
    case 0x8b:
    case 0x8c:
      return KV_EXIT_MWAIT;
    case 0x8d:
      return KV_EXIT_XSETBV;
    case 0xa5:
      return KV_EXIT_BUS_LOCK;
    case 0x400:
      return KV_EXIT_PAGE_FAULT;
    case 0x401:
    case 0x402:
      return KV_EXIT_APIC;
    case 0x403:
      return KV_EXIT_ENCRYPTED;
    case 0xffffffff:
      return KV_EXIT_FAILED;
    default:
      return KV_EXIT_OTHER;
  }
}

#ifdef __bpf__
#include "programs.bpf.h"

/* The vCPU is the first member of the processor's own structure. */
KV_INLINE __u32 exit_of_vcpu(struct kvm_vcpu* vcpu, __u32 isa) {
  if (isa == KVM_ISA_SVM && bpf_core_type_exists(struct vcpu_svm)) {
    struct vcpu_svm* svm = (void*)vcpu;
    struct vmcb* vmcb = BPF_CORE_READ(svm, vmcb);
    __u32 code = BPF_CORE_READ(vmcb, control.exit_code);
    return svm_exit(code, code == 0x7c && BPF_CORE_READ(vmcb, control.exit_info_1) & 1);
  }
  if (isa == KVM_ISA_VMX && bpf_core_type_exists(struct vcpu_vmx)) {
    struct vcpu_vmx* vmx = (void*)vcpu;
    struct vcpu_vmx___vt* newer = (void*)vcpu;
    if (bpf_core_field_exists(vmx->exit_reason)) return vmx_exit(BPF_CORE_READ(vmx, exit_reason.full));
    if (bpf_core_field_exists(newer->vt)) return vmx_exit(BPF_CORE_READ(newer, vt.exit_reason.full));
  }
  return KV_EXIT_OTHER;
}
#endif

#endif
