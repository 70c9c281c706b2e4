// SPDX-License-Identifier: Apache-2.0
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <bucket_program.skel.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "bpf/abi.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf {
namespace {

/// By another way than the programs': bounds in long double (good to 1e-8 ns at 128 s; no bound is that near
/// to a whole number without being one), found by binary search.
std::uint32_t reference_bucket(std::uint64_t ns) {
  static const std::vector<long double> bounds = [] {
    std::vector<long double> all;
    for (int k = 0; k <= KV_BUCKETS; ++k)
      all.push_back(std::ldexp(1e9L * std::exp2((k % 4) / 4.0L), k / 4 - 20));
    return all;
  }();
  const auto above = std::lower_bound(bounds.begin(), bounds.end(), static_cast<long double>(ns));
  return std::min<std::uint32_t>(static_cast<std::uint32_t>(above - bounds.begin()), KV_BUCKETS);
}

TEST_CASE("the kernel's bucket of a delay equals the reference, at every bound and for random delays") {
  struct Destroy {
    void operator()(bucket_program* skeleton) const { bucket_program__destroy(skeleton); }
  };
  const std::unique_ptr<bucket_program, Destroy> skeleton(bucket_program__open_and_load());
  REQUIRE(skeleton);

  std::vector<std::uint64_t> delays{0, 1, ~std::uint64_t{0}, ~std::uint64_t{0} >> 1U};
  for (const std::uint64_t bound : kv_bounds) delays.insert(delays.end(), {bound - 1, bound, bound + 1});
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t power = std::uint64_t{1} << bit;
    delays.insert(delays.end(), {power - 1, power, power + 1});
  }
  std::mt19937_64 random(20251121);
  while (delays.size() < 101'000) delays.push_back(random() >> (random() % 64));

  const std::size_t batch = std::size(skeleton->bss->delays_ns);
  for (std::size_t from = 0; from < delays.size(); from += batch) {
    const std::size_t count = std::min(batch, delays.size() - from);
    std::copy_n(delays.begin() + static_cast<std::ptrdiff_t>(from), count, skeleton->bss->delays_ns);
    LIBBPF_OPTS(bpf_test_run_opts, options);
    REQUIRE(bpf_prog_test_run_opts(bpf_program__fd(skeleton->progs.find_buckets), &options) == 0);
    for (std::size_t i = 0; i < count; ++i) {
      if (skeleton->bss->buckets[i] == reference_bucket(delays[from + i])) continue;
      FAIL("delay of " << delays[from + i] << " ns: bucket " << skeleton->bss->buckets[i] << ", expected "
                       << reference_bucket(delays[from + i]));
    }
  }
}

}  // namespace
}  // namespace kvmscope::bpf
