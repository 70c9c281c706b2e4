// SPDX-License-Identifier: Apache-2.0
// Exit reasons by the numbers of the kernel's own headers.
#if defined(__x86_64__)
#include <asm/svm.h>
#include <asm/vmx.h>

#include "bpf/kvm_exits.bpf.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf {
namespace {

TEST_CASE("SVM's exits have the reason that they are") {
  struct Row {
    std::uint32_t code;
    kv_exit reason;
  };
  const Row rows[] = {{SVM_EXIT_READ_CR0, KV_EXIT_CR},
                      {SVM_EXIT_WRITE_CR8, KV_EXIT_CR},
                      {SVM_EXIT_CR0_SEL_WRITE, KV_EXIT_CR},
                      {SVM_EXIT_READ_DR0, KV_EXIT_DR},
                      {SVM_EXIT_WRITE_DR7, KV_EXIT_DR},
                      {SVM_EXIT_EXCP_BASE, KV_EXIT_EXCEPTION},
                      {SVM_EXIT_EXCP_BASE + 31, KV_EXIT_EXCEPTION},
                      {SVM_EXIT_INTR, KV_EXIT_INTERRUPT},
                      {SVM_EXIT_NMI, KV_EXIT_NMI},
                      {SVM_EXIT_SMI, KV_EXIT_SMI},
                      {SVM_EXIT_RSM, KV_EXIT_SMI},
                      {SVM_EXIT_VINTR, KV_EXIT_INTERRUPT_WINDOW},
                      {SVM_EXIT_IDTR_READ, KV_EXIT_DESCRIPTOR},
                      {SVM_EXIT_TR_WRITE, KV_EXIT_DESCRIPTOR},
                      {SVM_EXIT_RDTSC, KV_EXIT_RDTSC},
                      {SVM_EXIT_RDTSCP, KV_EXIT_RDTSC},
                      {SVM_EXIT_RDPMC, KV_EXIT_RDPMC},
                      {SVM_EXIT_CPUID, KV_EXIT_CPUID},
                      {SVM_EXIT_IRET, KV_EXIT_INTERRUPT_WINDOW},
                      {SVM_EXIT_INVD, KV_EXIT_WBINVD},
                      {SVM_EXIT_WBINVD, KV_EXIT_WBINVD},
                      {SVM_EXIT_PAUSE, KV_EXIT_PAUSE},
                      {SVM_EXIT_HLT, KV_EXIT_HLT},
                      {SVM_EXIT_INVLPG, KV_EXIT_INVLPG},
                      {SVM_EXIT_INVPCID, KV_EXIT_INVLPG},
                      {SVM_EXIT_IOIO, KV_EXIT_IO},
                      {SVM_EXIT_TASK_SWITCH, KV_EXIT_TASK_SWITCH},
                      {SVM_EXIT_SHUTDOWN, KV_EXIT_SHUTDOWN},
                      {SVM_EXIT_VMRUN, KV_EXIT_NESTED},
                      {SVM_EXIT_SKINIT, KV_EXIT_NESTED},
                      {SVM_EXIT_VMMCALL, KV_EXIT_HYPERCALL},
                      {SVM_EXIT_MONITOR, KV_EXIT_MWAIT},
                      {SVM_EXIT_MWAIT_COND, KV_EXIT_MWAIT},
                      {SVM_EXIT_XSETBV, KV_EXIT_XSETBV},
                      {SVM_EXIT_NPF, KV_EXIT_PAGE_FAULT},
                      {SVM_EXIT_AVIC_INCOMPLETE_IPI, KV_EXIT_APIC},
                      {SVM_EXIT_AVIC_UNACCELERATED_ACCESS, KV_EXIT_APIC},
                      {SVM_EXIT_VMGEXIT, KV_EXIT_ENCRYPTED},
                      {static_cast<std::uint32_t>(SVM_EXIT_ERR), KV_EXIT_FAILED},
                      {0x3ff, KV_EXIT_OTHER}};
  for (const Row& row : rows) {
    CAPTURE(row.code);
    CHECK(svm_exit(row.code, 0) == row.reason);
  }
  CHECK(svm_exit(SVM_EXIT_MSR, 0) == KV_EXIT_MSR_READ);
  CHECK(svm_exit(SVM_EXIT_MSR, 1) == KV_EXIT_MSR_WRITE);
}

TEST_CASE("VMX's exits have the reason that they are") {
  struct Row {
    std::uint32_t code;
    kv_exit reason;
  };
  const Row rows[] = {{EXIT_REASON_EXCEPTION_NMI, KV_EXIT_EXCEPTION},
                      {EXIT_REASON_EXTERNAL_INTERRUPT, KV_EXIT_INTERRUPT},
                      {EXIT_REASON_TRIPLE_FAULT, KV_EXIT_SHUTDOWN},
                      {EXIT_REASON_INIT_SIGNAL, KV_EXIT_INTERRUPT},
                      {EXIT_REASON_INTERRUPT_WINDOW, KV_EXIT_INTERRUPT_WINDOW},
                      {EXIT_REASON_NMI_WINDOW, KV_EXIT_INTERRUPT_WINDOW},
                      {EXIT_REASON_TASK_SWITCH, KV_EXIT_TASK_SWITCH},
                      {EXIT_REASON_CPUID, KV_EXIT_CPUID},
                      {EXIT_REASON_HLT, KV_EXIT_HLT},
                      {EXIT_REASON_INVD, KV_EXIT_WBINVD},
                      {EXIT_REASON_INVLPG, KV_EXIT_INVLPG},
                      {EXIT_REASON_RDPMC, KV_EXIT_RDPMC},
                      {EXIT_REASON_RDTSC, KV_EXIT_RDTSC},
                      {EXIT_REASON_VMCALL, KV_EXIT_HYPERCALL},
                      {EXIT_REASON_VMCLEAR, KV_EXIT_NESTED},
                      {EXIT_REASON_VMON, KV_EXIT_NESTED},
                      {EXIT_REASON_CR_ACCESS, KV_EXIT_CR},
                      {EXIT_REASON_DR_ACCESS, KV_EXIT_DR},
                      {EXIT_REASON_IO_INSTRUCTION, KV_EXIT_IO},
                      {EXIT_REASON_MSR_READ, KV_EXIT_MSR_READ},
                      {EXIT_REASON_MSR_WRITE, KV_EXIT_MSR_WRITE},
                      {EXIT_REASON_INVALID_STATE, KV_EXIT_FAILED},
                      {EXIT_REASON_MSR_LOAD_FAIL, KV_EXIT_FAILED},
                      {EXIT_REASON_MWAIT_INSTRUCTION, KV_EXIT_MWAIT},
                      {EXIT_REASON_MONITOR_INSTRUCTION, KV_EXIT_MWAIT},
                      {EXIT_REASON_PAUSE_INSTRUCTION, KV_EXIT_PAUSE},
                      {EXIT_REASON_MCE_DURING_VMENTRY, KV_EXIT_FAILED},
                      {EXIT_REASON_TPR_BELOW_THRESHOLD, KV_EXIT_APIC},
                      {EXIT_REASON_APIC_ACCESS, KV_EXIT_APIC},
                      {EXIT_REASON_EOI_INDUCED, KV_EXIT_APIC},
                      {EXIT_REASON_GDTR_IDTR, KV_EXIT_DESCRIPTOR},
                      {EXIT_REASON_LDTR_TR, KV_EXIT_DESCRIPTOR},
                      {EXIT_REASON_EPT_VIOLATION, KV_EXIT_PAGE_FAULT},
                      {EXIT_REASON_EPT_MISCONFIG, KV_EXIT_EPT_MISCONFIG},
                      {EXIT_REASON_INVEPT, KV_EXIT_NESTED},
                      {EXIT_REASON_RDTSCP, KV_EXIT_RDTSC},
                      {EXIT_REASON_PREEMPTION_TIMER, KV_EXIT_PREEMPTION_TIMER},
                      {EXIT_REASON_INVVPID, KV_EXIT_NESTED},
                      {EXIT_REASON_WBINVD, KV_EXIT_WBINVD},
                      {EXIT_REASON_XSETBV, KV_EXIT_XSETBV},
                      {EXIT_REASON_APIC_WRITE, KV_EXIT_APIC},
                      {EXIT_REASON_INVPCID, KV_EXIT_INVLPG},
                      {EXIT_REASON_BUS_LOCK, KV_EXIT_BUS_LOCK},
                      {9999, KV_EXIT_OTHER}};
  for (const Row& row : rows) {
    CAPTURE(row.code);
    CHECK(vmx_exit(row.code) == row.reason);
    CHECK(vmx_exit(row.code | 0x80000000U) == KV_EXIT_FAILED);
    CHECK(vmx_exit(row.code | 0x04000000U) == row.reason);  // other flags above the number
  }
}

}  // namespace
}  // namespace kvmscope::bpf
#endif
