// SPDX-License-Identifier: Apache-2.0
#include <bpf/btf.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "bpf/abi.h"
#include "tests/support/catch.h"

namespace kvmscope::bpf {
namespace {

struct Free {
  void operator()(btf* types) const { btf__free(types); }
};

struct Member {
  std::size_t offset;
  std::size_t size;
};

std::optional<Member> member_of(const btf* types, const btf_type* type, const std::string& name) {
  const btf_member* members = btf_members(type);
  for (int i = 0; i < btf_vlen(type); ++i) {
    if (name != btf__name_by_offset(types, members[i].name_off)) continue;
    return Member{btf_member_bit_offset(type, static_cast<__u32>(i)) / 8U,
                  static_cast<std::size_t>(btf__resolve_size(types, members[i].type))};
  }
  return std::nullopt;
}

#define SAME_SIZE(type)                                                         \
  const btf_type* type##_btf = [&] {                                            \
    const int id = btf__find_by_name_kind(types.get(), #type, BTF_KIND_STRUCT); \
    INFO(#type);                                                                \
    REQUIRE(id > 0);                                                            \
    return btf__type_by_id(types.get(), static_cast<__u32>(id));                \
  }();                                                                          \
  CHECK(type##_btf->size == sizeof(type))

#define SAME_PLACE(type, field)                                       \
  do {                                                                \
    const auto found = member_of(types.get(), type##_btf, #field);    \
    INFO(#type "." #field);                                           \
    REQUIRE(found);                                                   \
    CHECK(found->offset == offsetof(type, field));                    \
    CHECK(found->size == sizeof(static_cast<type*>(nullptr)->field)); \
  } while (false)

TEST_CASE("shared structures lie the same in the object and here") {
  const std::unique_ptr<btf, Free> types(btf__parse(KVMSCOPE_BPF_OBJECT, nullptr));
  REQUIRE(types);
  SAME_SIZE(kv_identity);
  SAME_PLACE(kv_identity, generation);
  SAME_SIZE(kv_header);
  SAME_PLACE(kv_header, generation);
  SAME_PLACE(kv_header, base);
  SAME_PLACE(kv_header, devs);
  SAME_PLACE(kv_header, subs);
  SAME_PLACE(kv_header, incarnation);
  SAME_SIZE(kv_counter);
  SAME_PLACE(kv_counter, count);
  SAME_PLACE(kv_counter, sum);
  SAME_SIZE(kv_histogram);
  SAME_PLACE(kv_histogram, sum_ns);
  SAME_PLACE(kv_histogram, counts);
  SAME_SIZE(kv_slot_info);
  SAME_PLACE(kv_slot_info, generation);
  SAME_PLACE(kv_slot_info, tenant);
  SAME_PLACE(kv_slot_info, listed);
  SAME_PLACE(kv_slot_info, disk_keys);
  SAME_PLACE(kv_slot_info, nic_keys);
  SAME_SIZE(kv_process_key);
  SAME_PLACE(kv_process_key, start_ticks);
  SAME_SIZE(kv_process);
  SAME_PLACE(kv_process, id);
  SAME_PLACE(kv_process, flags);
  SAME_SIZE(kv_event_process);
  SAME_PLACE(kv_event_process, process);
  SAME_PLACE(kv_event_process, id);
  SAME_PLACE(kv_event_process, comm);
  SAME_SIZE(kv_event_io_error);
  SAME_PLACE(kv_event_io_error, bytes);
  SAME_PLACE(kv_event_io_error, id);
  SAME_PLACE(kv_event_io_error, sector);
  SAME_PLACE(kv_event_io_error, monotonic_ns);
  SAME_PLACE(kv_event_io_error, dev);
  SAME_PLACE(kv_event_io_error, sub);
  SAME_SIZE(kv_name);
  SAME_SIZE(kv_queue);
}

}  // namespace
}  // namespace kvmscope::bpf
