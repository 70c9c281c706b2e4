// SPDX-License-Identifier: Apache-2.0
// exit-cost SECONDS [EMPTY_NS]: what a running daemon's programs cost a vCPU's exit and entry, by the
// kernel's own run counts, beside empty programs on the same hooks. Where guests run under KVM, while one is
// busy. Without a daemon: what the empty pair costs alone, which is EMPTY_NS when there is one. (Beside
// others it finds everything in the caches.)
#include <kvm_empty.skel.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#include "hostd/core/unique_fd.h"
#include "tests/bench/costs.h"

namespace {

using kvmscope::bpf::test::Cost;
using kvmscope::bpf::test::Costs;
using kvmscope::bpf::test::costs;
using kvmscope::bpf::test::print;
using kvmscope::bpf::test::since;

struct DestroyEmpty {
  void operator()(kvm_empty* skeleton) const { kvm_empty__destroy(skeleton); }
};

int fail(const char* what) {
  std::fprintf(stderr, "exit-cost: %s\n", what);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const int seconds = argc >= 2 ? std::atoi(argv[1]) : 0;
  if (seconds <= 0) return fail("usage: exit-cost SECONDS [EMPTY_NS]");
  const kvmscope::core::UniqueFd stats(bpf_enable_stats(BPF_STATS_RUN_TIME));
  if (!stats) return fail("no run-time statistics: needs root");
  const std::unique_ptr<kvm_empty, DestroyEmpty> empty(kvm_empty__open_and_load());
  if (!empty || kvm_empty__attach(empty.get()) != 0) return fail("the hooks of KVM are not there");
  const Costs ours_before = costs("kv_");
  const Costs none_before = costs("empty_");
  const Costs parts_before = costs("part_");
  std::this_thread::sleep_for(std::chrono::seconds(seconds));
  Costs ours = since(costs("kv_"), ours_before);
  Costs none = since(costs("empty_"), none_before);
  print("programs of the daemon:", ours);
  print("empty programs:", none);
  print("what each thing at an exit costs once the caches have it:", since(costs("part_"), parts_before));
  const double nothing = none["empty_exit"].each() + none["empty_entry"].each();
  if (nothing <= 0) return fail("nothing left its guest");
  const double pair = ours["kv_exit_vcpu"].each() + ours["kv_exit_reason"].each() + ours["kv_entry"].each();
  if (pair <= 0) {
    std::printf("an empty pair alone: %.0f ns\n", nothing);
    return 0;
  }
  std::printf("an exit and its entry: %.0f ns, beside them an empty pair %.0f ns, ratio %.1f\n", pair,
              nothing, pair / nothing);
  if (argc > 2) {
    const double alone = std::atof(argv[2]);
    std::printf("to an empty pair alone (%.0f ns): ratio %.1f (target 7.5, aim 5)\n", alone, pair / alone);
  }
  const double handed_on = ours["kv_userspace_ex"].each();
  std::printf("a return to QEMU: %.0f ns more\n", handed_on);
  return 0;
}
