// SPDX-License-Identifier: Apache-2.0
#include "virt/block_stats.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>
#include <string_view>

namespace kvmscope::virt {
namespace {

constexpr std::string_view kPrefix = "block.";

struct Field {
  unsigned disk = 0;
  std::string_view what;  ///< "rd.reqs"
};

std::optional<Field> field_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  Field field;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), field.disk);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.') return std::nullopt;
  field.what = name.substr(static_cast<std::size_t>(end - name.data()) + 1);
  return field;
}

struct Raw {
  std::string target;
  bool image = false;  ///< of a chain, below the top
  std::map<std::string_view, std::uint64_t> numbers;
};

/// All three or nothing: half an answer is none. Flushes have no bytes.
std::optional<GuestOperations> operations(const Raw& raw, std::string_view reqs, std::string_view bytes,
                                          std::string_view times) {
  const auto number = [&raw](std::string_view what) {
    const auto found = raw.numbers.find(what);
    return found == raw.numbers.end() ? std::nullopt : std::optional(found->second);
  };
  const auto count = number(reqs);
  const auto size = bytes.empty() ? std::optional<std::uint64_t>(0) : number(bytes);
  const auto time = number(times);
  if (!count || !size || !time) return std::nullopt;
  return GuestOperations{.operations = *count, .bytes = *size, .time_ns = *time};
}

}  // namespace

std::vector<GuestDisk> guest_disks(const std::vector<StatField>& fields) {
  std::map<unsigned, Raw> raws;
  for (const StatField& field : fields) {
    const auto parsed = field_of(field.name);
    if (!parsed) continue;
    Raw& raw = raws[parsed->disk];
    if (parsed->what == "name") {
      raw.target = field.text;
    } else if (parsed->what == "backingIndex") {
      raw.image = field.number != 0;
    } else {
      raw.numbers[parsed->what] = field.number;
    }
  }
  std::vector<GuestDisk> disks;
  for (const auto& [number, raw] : raws) {
    const bool known = std::ranges::find(disks, raw.target, &GuestDisk::target) != disks.end();
    if (raw.target.empty() || (raw.image && known)) continue;
    const auto read = operations(raw, "rd.reqs", "rd.bytes", "rd.times");
    const auto write = operations(raw, "wr.reqs", "wr.bytes", "wr.times");
    const auto flush = operations(raw, "fl.reqs", {}, "fl.times");
    if (read && write && flush) disks.push_back({raw.target, *read, *write, *flush});
  }
  return disks;
}

}  // namespace kvmscope::virt
