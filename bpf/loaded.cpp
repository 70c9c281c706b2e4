// SPDX-License-Identifier: Apache-2.0
#include "bpf/loaded.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <programs.skel.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "bpf/libbpf_log.h"
#include "bpf/process_files.h"

namespace kvmscope::bpf {
namespace {

using core::Error;
using core::ErrorCode;
using core::fail;
using core::Result;

constexpr const char* kKernelBtf = "/sys/kernel/btf/vmlinux";
constexpr std::string_view kTracePrefix = "tp_btf/";
constexpr std::array<std::string_view, 3> kBioPrograms{"kv_bio_queue", "kv_bio_complete", "kv_bio_complete2"};

const btf* kernel_btf() {
  struct Deleter {
    void operator()(btf* types) const { btf__free(types); }
  };
  static const std::unique_ptr<btf, Deleter> types(btf__load_vmlinux_btf());
  return types.get();
}

std::string tracepoint_of(const bpf_program* program) {
  return std::string(bpf_program__section_name(program)).substr(kTracePrefix.size());
}

/// block_rq_complete passed an errno until 5.16.
bool completion_passes_errno() {
  const btf* types = kernel_btf();
  const auto arguments = tracepoint_arguments(types, "block_rq_complete");
  return arguments.size() >= 2 && btf_is_int(btf__type_by_id(types, arguments[1].type));
}

std::uint64_t number_in(const std::filesystem::path& path) {
  std::uint64_t value = 0;
  std::ifstream(path) >> value;
  return value;
}

/// Room for the tags of every queue there is, twice, so that disks may come; more of them use a hash.
std::uint32_t carry_capacity() {
  std::uint64_t tags = 0;
  std::error_code error;
  for (const auto& disk : std::filesystem::directory_iterator("/sys/block", error)) {
    const std::uint64_t requests = number_in(disk.path() / "queue/nr_requests");
    std::error_code none;
    for (const auto& queue : std::filesystem::directory_iterator(disk.path() / "mq", none)) {
      tags += std::max(requests, number_in(queue.path() / "nr_tags"));
    }
  }
  return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(2 * tags, 1U << 16U, 1U << 20U));
}

/// Device mapper, md, multipath heads: a VM may do I/O there before anybody has said so. Memory as a disk is
/// no VM's by habit, and asked for by name where it is.
bool host_has_stacked_devices() {
  std::error_code error;
  for (const auto& disk : std::filesystem::directory_iterator("/sys/block", error)) {
    const std::string name = disk.path().filename();
    if (name.starts_with("zram") || name.starts_with("ram")) continue;
    if (!std::filesystem::exists(disk.path() / "mq", error)) return true;
  }
  return false;
}

Result<kv_name> name_to_match(const std::string& pattern) {
  const bool prefix = pattern.ends_with('*');
  const std::string text = prefix ? pattern.substr(0, pattern.size() - 1) : pattern;
  if (text.empty() || text.size() >= KV_NAME_BYTES) {
    return fail(
        ErrorCode::invalid_argument,
        "QEMU name '" + pattern + "': 1 to " + std::to_string(KV_NAME_BYTES - 1) + " characters are needed");
  }
  kv_name name{};
  std::memcpy(name.text, text.data(), text.size());
  // An exact name compares its terminating zero, too.
  std::memset(name.mask, 0xff, text.size() + (prefix ? 0 : 1));
  return name;
}

Error load_error(int code, const LibbpfLog& log) {
  if (code == EPERM || code == EACCES) {
    if (::geteuid() != 0 || log.last_lines(40).find("processed") == std::string::npos) {
      return {
          ErrorCode::permission_denied,
          "load BPF programs: " + std::string(std::strerror(code)) +
              "; run as root, or with CAP_BPF and CAP_PERFMON (and not in a container that forbids bpf()): " +
              log.last_lines(4)};
    }
  }
  return Error(ErrorCode::system,
               std::string(std::strerror(code)) + "; the kernel says: " + log.last_lines(12))
      .wrap("load BPF programs");
}

}  // namespace

std::span<const btf_param> tracepoint_arguments(const btf* types, const std::string& name) {
  const int id = btf__find_by_name_kind(types, ("btf_trace_" + name).c_str(), BTF_KIND_TYPEDEF);
  if (id < 0) return {};
  const btf_type* type =
      btf__type_by_id(types, btf__type_by_id(types, static_cast<__u32>(id))->type);  // pointer
  type = btf__type_by_id(types, type->type);                                         // function
  if (!btf_is_func_proto(type) || btf_vlen(type) == 0) return {};
  return {btf_params(type) + 1, static_cast<std::size_t>(btf_vlen(type)) - 1};  // the first is the program's
}

bool kernel_has_tracepoint(const std::string& name) {
  const btf* types = kernel_btf();
  return types != nullptr &&
         btf__find_by_name_kind(types, ("btf_trace_" + name).c_str(), BTF_KIND_TYPEDEF) > 0;
}

void Loaded::SkeletonDeleter::operator()(::programs* skeleton) const {
  programs__destroy(skeleton);
}

Loaded::~Loaded() {
  for (const auto& [name, link] : links_) bpf_link__destroy(link);
}

Result<std::unique_ptr<Loaded>> Loaded::load(const Options& options) {
  const LibbpfLog log;
  if (::access(kKernelBtf, R_OK) != 0) {
    return fail(ErrorCode::unsupported,
                std::string(kKernelBtf) +
                    " is missing: the kernel has no type information; use one built with "
                    "CONFIG_DEBUG_INFO_BTF=y (5.15 or later)");
  }
  std::unique_ptr<Loaded> loaded(new Loaded());
  loaded->skeleton_.reset(programs__open());
  if (!loaded->skeleton_) return fail(load_error(errno, log));
  if (auto done = loaded->configure(options); !done) return fail(done.error());
  const int result = programs__load(loaded->skeleton_.get());
  if (result != 0) return fail(load_error(-result, log));
  if (auto done = loaded->map_arrays(options); !done) return fail(done.error());
  return loaded;
}

Result<void> Loaded::configure(const Options& options) {
  ::programs& skeleton = *skeleton_;
  const bool has_start = kernel_has_tracepoint("block_io_start");
  identity_hook_ = options.identity_hook;
  if (identity_hook_ == IdentityHook::automatic) {
    identity_hook_ = has_start ? IdentityHook::io_start : IdentityHook::getrq;
  }
  const bool by_getrq = identity_hook_ == IdentityHook::getrq;
  why_not_[by_getrq ? "kv_io_start" : "kv_getrq"] = by_getrq
                                                        ? "not needed: identity is taken at block_getrq"
                                                        : "not needed: identity is taken at block_io_start";
  for (const std::string_view name : kBioPrograms) {
    why_not_[std::string(name)] = "not needed: no VM has a disk on a device without requests";
  }
  const bool drop_has_reason = tracepoint_arguments(kernel_btf(), "kfree_skb").size() >= 3;
  why_not_[drop_has_reason ? "kv_net_dropped2" : "kv_net_dropped"] =
      "not needed: this kernel's kfree_skb has other arguments";
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, skeleton.obj) {
    const std::string name = bpf_program__name(program);
    if (name == "kv_settle") {
      if (libbpf_probe_bpf_helper(BPF_PROG_TYPE_RAW_TRACEPOINT, BPF_FUNC_loop, nullptr) == 1) {
        why_not_[name] = "run by the daemon before each reading";
        bpf_program__set_autoload(program, true);
      } else {
        why_not_[name] =
            "this kernel has no bpf_loop: completions it does not show count at their tag's next use";
        bpf_program__set_autoload(program, false);
      }
      continue;
    }
    if (name == "kv_threads") continue;  // an iterator
    const std::string tracepoint = tracepoint_of(program);
    if (!kernel_has_tracepoint(tracepoint)) why_not_[name] = "this kernel has no tracepoint " + tracepoint;
    const bool later = std::ranges::find(kBioPrograms, name) != kBioPrograms.end();
    const bool wanted = !why_not_.contains(name) || (later && kernel_has_tracepoint(tracepoint));
    bpf_program__set_autoload(program, wanted);
  }
  for (const char* needed : {"kv_rq_issue", "kv_rq_complete", "kv_exec", "kv_fork", "kv_new_thread",
                             "kv_exit", "kv_switch", "kv_rename", by_getrq ? "kv_getrq" : "kv_io_start"}) {
    if (const auto why = why_not_.find(needed); why != why_not_.end()) {
      return fail(ErrorCode::unsupported, why->second + ", which " + needed + " needs");
    }
  }

  std::array<kv_name, KV_NAMES> names{};
  if (options.qemu_names.size() > names.size()) {
    return fail(ErrorCode::invalid_argument, "more than " + std::to_string(names.size()) + " QEMU names");
  }
  for (std::size_t i = 0; i < options.qemu_names.size(); ++i) {
    auto name = name_to_match(options.qemu_names[i]);
    if (!name) return fail(name.error());
    names[i] = *name;
  }
  const std::uint32_t capacity = carry_capacity();
  std::memcpy(static_cast<void*>(const_cast<kv_name*>(skeleton.rodata->qemu_names)), names.data(),
              sizeof(names));
  skeleton.rodata->carry_capacity = capacity;
  skeleton.rodata->identity_by_getrq = by_getrq;
  skeleton.rodata->error_is_errno = completion_passes_errno();
  const auto slots = options.max_slots;
  bpf_map__set_max_entries(skeleton.maps.counters, slots);
  bpf_map__set_max_entries(skeleton.maps.histograms, slots);
  bpf_map__set_max_entries(skeleton.maps.slot_info, slots);
  bpf_map__set_max_entries(skeleton.maps.spares, slots);
  bpf_map__set_max_entries(skeleton.maps.procs, 4 * slots);
  bpf_map__set_max_entries(skeleton.maps.cgroups, options.max_cgroups);
  bpf_map__set_max_entries(skeleton.maps.nics, KV_MAX_NICS * slots);
  bpf_map__set_max_entries(skeleton.maps.events, options.max_tenants);
  bpf_map__set_max_entries(skeleton.maps.ring_drops, options.max_tenants);
  bpf_map__set_max_entries(skeleton.maps.carries, capacity);
  return {};
}

void Loaded::settle() const {
  const int program = bpf_program__fd(skeleton_->progs.kv_settle);
  if (program < 0) return;
  LIBBPF_OPTS(bpf_test_run_opts, options);
  bpf_prog_test_run_opts(program, &options);
}

void Loaded::count_threads() const {
  const auto link = links_.find("kv_threads");
  if (link == links_.end()) return;
  const core::UniqueFd walk(bpf_iter_create(bpf_link__fd(link->second)));
  std::array<char, 64> nothing{};  // the program writes nothing
  while (walk && (::read(walk.get(), nothing.data(), nothing.size()) > 0 || errno == EAGAIN)) errno = 0;
}

Result<void> Loaded::map_arrays(const Options& options) {
  const auto& maps = skeleton_->maps;
  maps_ = {.counters = bpf_map__fd(maps.counters),
           .histograms = bpf_map__fd(maps.histograms),
           .events = bpf_map__fd(maps.events),
           .spares = bpf_map__fd(maps.spares),
           .procs = bpf_map__fd(maps.procs),
           .cgroups = bpf_map__fd(maps.cgroups),
           .carry_overflow = bpf_map__fd(maps.carry_overflow),
           .bios = bpf_map__fd(maps.bios),
           .nics = bpf_map__fd(maps.nics)};
  auto info = MapView::open(bpf_map__fd(maps.slot_info), sizeof(kv_slot_info) * options.max_slots, true);
  if (!info) return fail(info.error());
  auto drops = MapView::open(bpf_map__fd(maps.ring_drops), sizeof(__u64) * options.max_tenants);
  if (!drops) return fail(drops.error());
  slot_info_ = std::move(*info);
  ring_drops_ = std::move(*drops);
  auto carries =
      MapView::open(bpf_map__fd(maps.carries), sizeof(kv_carry) * skeleton_->rodata->carry_capacity);
  if (!carries) return fail(carries.error());
  carries_ = std::move(*carries);
  return {};
}

Result<void> Loaded::attach_one(bpf_program* program) {
  const LibbpfLog log;
  const std::string name = bpf_program__name(program);
  bpf_link* link = bpf_program__attach(program);
  if (link == nullptr) return fail(Error::from_errno("attach " + name).wrap(log.last_lines(3)));
  links_[name] = link;
  why_not_.erase(name);
  return {};
}

Result<void> Loaded::attach() {
  const auto& all = skeleton_->progs;
  for (bpf_program* program :
       {all.kv_rq_complete,   all.kv_rq_issue,       all.kv_rq_requeue,   all.kv_rq_merge,
        all.kv_bio_backmerge, all.kv_bio_frontmerge, all.kv_io_start,     all.kv_getrq,
        all.kv_net_taken,     all.kv_net_dropped,    all.kv_net_dropped2, all.kv_net_refused,
        all.kv_net_queued,    all.kv_net_sent,       all.kv_threads,      all.kv_switch,
        all.kv_rename,        all.kv_exit,           all.kv_new_thread,   all.kv_fork,
        all.kv_exec}) {
    if (!bpf_program__autoload(program)) continue;
    if (auto done = attach_one(program); !done) return done;
  }
  return host_has_stacked_devices() ? attach_bio_programs() : Result<void>();
}

Result<void> Loaded::attach_bio_programs() {
  for (bpf_program* program :
       {skeleton_->progs.kv_bio_complete, skeleton_->progs.kv_bio_complete2, skeleton_->progs.kv_bio_queue}) {
    if (links_.contains(std::string_view(bpf_program__name(program)))) continue;
    if (auto done = attach_one(program); !done) return done;
  }
  return {};
}

kv_globals& Loaded::globals() const {
  return skeleton_->bss->globals;
}

kv_slot_info& Loaded::slot_info(std::uint32_t slot) const {
  return reinterpret_cast<kv_slot_info*>(slot_info_.data())[slot];
}

std::uint64_t Loaded::ring_drops(std::uint32_t tenant_index) const {
  return __atomic_load_n(&reinterpret_cast<const __u64*>(ring_drops_.data())[tenant_index], __ATOMIC_RELAXED);
}

std::span<const kv_carry> Loaded::carries() const {
  const std::uint32_t used = __atomic_load_n(&globals().carry_cursor, __ATOMIC_RELAXED);
  return {reinterpret_cast<const kv_carry*>(carries_.data()),
          std::min(used, skeleton_->rodata->carry_capacity)};
}

ProgramInfo figures_of(const bpf_program* program) {
  ProgramInfo entry{.name = bpf_program__name(program)};
  bpf_prog_info info{};
  __u32 size = sizeof(info);
  const int fd = bpf_program__fd(program);
  if (fd >= 0 && bpf_obj_get_info_by_fd(fd, &info, &size) == 0) {
    entry.run_count = info.run_cnt;
    entry.run_time_ns = info.run_time_ns;
    entry.recursion_misses = info.recursion_misses;
    entry.verified_instructions = info.verified_insns;
    entry.jited_bytes = info.jited_prog_len;
  }
  return entry;
}

Result<bool> Loaded::attach_kvm() {
  if (kvm_) return false;
  if (!KvmPrograms::kvm_is_here()) {
    why_no_kvm_ = "KVM's modules are not loaded; looked for again and again";
    return false;
  }
  auto kvm = KvmPrograms::load(skeleton_->obj);
  if (!kvm) {
    why_no_kvm_ = kvm.error().message();
    return fail(kvm.error());
  }
  kvm_ = std::move(*kvm);
  __atomic_store_n(&globals().kvm_live, 1, __ATOMIC_RELEASE);
  return true;
}

std::vector<ProgramInfo> Loaded::programs() const {
  std::vector<ProgramInfo> out;
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, skeleton_->obj) {
    ProgramInfo entry = figures_of(program);
    entry.attached = links_.contains(entry.name);
    if (const auto why = why_not_.find(entry.name); why != why_not_.end()) entry.why_not = why->second;
    out.push_back(std::move(entry));
  }
  std::ranges::move(kvm_ ? kvm_->programs() : KvmPrograms::absent(why_no_kvm_), std::back_inserter(out));
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton_->obj) {
    // "memlock:" is the kernel's own account of a map's memory.
    std::ifstream fdinfo("/proc/self/fdinfo/" + std::to_string(bpf_map__fd(map)));
    for (std::string key; fdinfo >> key;) {
      std::uint64_t bytes = 0;
      if (key == "memlock:" && fdinfo >> bytes) out.front().map_bytes += bytes;
    }
  }
  return out;
}

}  // namespace kvmscope::bpf
