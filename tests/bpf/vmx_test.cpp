// SPDX-License-Identifier: Apache-2.0
// The programs for KVM as an Intel host would load them: relocated against its module's types, and verified
// by this kernel. Needs a kernel whose kvm module is loaded, and kvm-intel's file: the hypervisor VM has
// both.
#include "bpf/abi.h"
// its layouts are the ABI's
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <kvm_programs.skel.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <span>

#include "bpf/libbpf_log.h"
#include "tests/bpf/rig.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf::test {
namespace {

template <auto Free>
struct Freer {
  template <typename T>
  void operator()(T* what) const {
    Free(what);
  }
};
using Types = std::unique_ptr<btf, Freer<btf__free>>;
using Programs = std::unique_ptr<kvm_programs, Freer<kvm_programs__destroy>>;

/// The module's file, unpacked.
std::string intel_module(const TempDir& dir) {
  utsname kernel{};
  REQUIRE(::uname(&kernel) == 0);
  const std::string file =
      "/lib/modules/" + std::string(kernel.release) + "/kernel/arch/x86/kvm/kvm-intel.ko";
  if (std::filesystem::exists(file)) return file;
  const std::string unpacked = dir / "kvm-intel.ko";
  run({"python3", "-c", "import lzma, sys; open(sys.argv[2], 'wb').write(lzma.open(sys.argv[1]).read())",
       file + ".xz", unpacked});
  return unpacked;
}

/// The kernel's types and the module's as one set: the module's are numbered on, and so are its strings.
std::vector<char> flattened(const btf* kernel, const btf* module) {
  const auto parts = [](const btf* types) {
    __u32 size = 0;
    const char* raw = static_cast<const char*>(btf__raw_data(types, &size));
    REQUIRE(raw != nullptr);
    const auto* header = reinterpret_cast<const btf_header*>(raw);
    const char* body = raw + header->hdr_len;
    return std::pair{std::span(body + header->type_off, header->type_len),
                     std::span(body + header->str_off, header->str_len)};
  };
  const auto [kernel_types, kernel_strings] = parts(kernel);
  const auto [module_types, module_strings] = parts(module);
  btf_header header{.magic = 0xeB9F,
                    .version = 1,
                    .flags = 0,
                    .hdr_len = sizeof(btf_header),
                    .type_off = 0,
                    .type_len = static_cast<__u32>(kernel_types.size() + module_types.size()),
                    .str_off = 0,
                    .str_len = static_cast<__u32>(kernel_strings.size() + module_strings.size())};
  header.str_off = header.type_len;
  std::vector<char> out(sizeof(header));
  std::memcpy(out.data(), &header, sizeof(header));
  for (const auto& part : {kernel_types, module_types, kernel_strings, module_strings})
    out.insert(out.end(), part.begin(), part.end());
  return out;
}

std::optional<__u32> member_offset(const btf* types, const char* structure, const char* member) {
  const int id = btf__find_by_name_kind(types, structure, BTF_KIND_STRUCT);
  if (id < 0) return std::nullopt;
  const btf_type* type = btf__type_by_id(types, static_cast<__u32>(id));
  for (std::uint16_t i = 0; i < btf_vlen(type); ++i) {
    if (std::strcmp(btf__name_by_offset(types, btf_members(type)[i].name_off), member) == 0)
      return btf_member_bit_offset(type, i) / 8;
  }
  return std::nullopt;
}

/// Where an Intel vCPU keeps why it left its guest.
std::optional<__u32> exit_reason_offset(const btf* types) {
  if (const auto direct = member_offset(types, "vcpu_vmx", "exit_reason")) return direct;
  const auto part = member_offset(types, "vcpu_vmx", "vt");
  const auto within = member_offset(types, "vcpu_vt", "exit_reason");
  if (!part || !within) return std::nullopt;
  return *part + *within;
}

std::vector<bpf_insn> translated(const bpf_program* program) {
  bpf_prog_info info{};
  __u32 size = sizeof(info);
  REQUIRE(bpf_obj_get_info_by_fd(bpf_program__fd(program), &info, &size) == 0);
  std::vector<bpf_insn> code(info.xlated_prog_len / sizeof(bpf_insn));
  bpf_prog_info again{};
  again.xlated_prog_len = info.xlated_prog_len;
  again.xlated_prog_insns = reinterpret_cast<__u64>(code.data());
  size = sizeof(again);
  REQUIRE(bpf_obj_get_info_by_fd(bpf_program__fd(program), &again, &size) == 0);
  return code;
}

TEST_CASE("on an Intel host the programs for KVM load, and read the exit's reason where VMX keeps it",
          "[.][vmx]") {
  const LibbpfLog log;
  const TempDir dir;
  const Types kernel(btf__load_vmlinux_btf());
  REQUIRE(kernel);
  const Types module(btf__parse_split(intel_module(dir).c_str(), kernel.get()));
  REQUIRE(module);
  const std::string all = dir / "types";
  const std::vector<char> bytes = flattened(kernel.get(), module.get());
  std::ofstream(all, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  const Types types(btf__parse(all.c_str(), nullptr));
  REQUIRE(types);
  const auto offset = exit_reason_offset(types.get());
  REQUIRE(offset);
  REQUIRE_FALSE(member_offset(types.get(), "vcpu_svm", "vmcb"));

  bpf_object_open_opts options{};
  options.sz = sizeof(options);
  options.btf_custom_path = all.c_str();
  const Programs programs(kvm_programs__open_opts(&options));
  REQUIRE(programs);
  bpf_program__set_autoload(programs->progs.kv_exit_reason, false);
  INFO(log.last_lines(20));
  const int error = kvm_programs__load(programs.get());
  CAPTURE(log.last_lines(20));
  REQUIRE(error == 0);

  for (const bpf_program* program : {programs->progs.kv_exit_vcpu, programs->progs.kv_entry}) {
    const std::vector<bpf_insn> code = translated(program);
    REQUIRE(std::ranges::any_of(code, [&](const bpf_insn& one) {
      return (one.code == (BPF_ALU64 | BPF_ADD | BPF_K) || one.code == (BPF_ALU64 | BPF_MOV | BPF_K)) &&
             one.imm == static_cast<__s32>(*offset);
    }));
  }
}

}  // namespace
}  // namespace kvmscope::bpf::test
