# SPDX-License-Identifier: Apache-2.0
# Cost of the kernel side. Needs root; run by hand on a quiet machine: it is no test.
kvmscope_bpf_object(kernel_empty kernel_empty.bpf.c)
add_executable(bench-kernel kernel_bench.cpp)
target_link_libraries(bench-kernel PRIVATE bpf_test_rig kernel_empty_object PkgConfig::LIBBPF)
