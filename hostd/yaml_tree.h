// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <vector>

namespace kvmscope::hostd {

/// A YAML document as a plain tree: every node with its line, duplicates of a key still there, nothing
/// interpreted.
struct YamlNode {
  enum class Kind : std::uint8_t { null, scalar, sequence, map } kind = Kind::null;
  std::string key;    ///< in a map: what it is called there
  unsigned line = 0;  ///< from 1; of the key if it has one
  bool quoted = false;
  std::string scalar;
  std::vector<YamlNode> children;  ///< items of a sequence, values of a map, in the file's order
};

struct YamlError {
  unsigned line = 0;
  std::string message;
  std::string remedy;
};

inline constexpr std::size_t kMaxYamlBytes = 1U << 20;

/// Parses one document. Refused: more than 1 MiB, 16 levels or 50,000 nodes, anchors, aliases, tags, a second
/// document, keys that are not plain words.
std::expected<YamlNode, YamlError> parse_yaml(std::string_view text);

}  // namespace kvmscope::hostd
