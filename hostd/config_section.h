// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hostd/config.h"
#include "hostd/config_values.h"
#include "hostd/yaml_tree.h"

namespace kvmscope::hostd {

/// Collects what is wrong.
struct Problems {
  std::string file;
  ConfigErrors errors;

  void add(unsigned line, std::string key, std::string message, std::string remedy) {
    errors.push_back({file, line, std::move(key), std::move(message), std::move(remedy)});
  }
};

/// One map of the document being read. Each reader takes one key: absent, the target keeps its default;
/// wrong, a problem is noted and the target keeps its default. When the section goes, keys that nobody asked
/// for are problems.
class Section {
 public:
  Section(Problems& problems, const YamlNode& node, std::string path);
  Section(Section& parent, std::string_view key);
  /// A section in which secrets may stand: neither its values nor odd keys are ever quoted.
  struct Secret {};
  Section(Section& parent, std::string_view key, Secret);
  Section(const Section&) = delete;
  Section& operator=(const Section&) = delete;
  ~Section();

  void text(std::string_view key, std::string& out, Check check);
  void texts(std::string_view key, std::vector<std::string>& out, Check check);
  void boolean(std::string_view key, bool& out);
  void duration(std::string_view key, std::chrono::milliseconds& out, std::chrono::milliseconds least,
                std::chrono::milliseconds most);
  /// True if it was there and in range.
  bool size(std::string_view key, std::uint64_t& out, std::uint64_t least, std::uint64_t most);
  template <std::unsigned_integral T>
  bool integer(std::string_view key, T& out, std::type_identity_t<T> least, std::type_identity_t<T> most) {
    const auto value = whole_number(key, least, most);
    if (value) out = static_cast<T>(*value);
    return value.has_value();
  }
  template <typename T>
  void choice(std::string_view key, T& out, std::span<const std::pair<std::string_view, T>> choices) {
    const YamlNode* node = scalar(key, "a word");
    if (node == nullptr) return;
    if (const auto found = one_of(*node, path_of(key), choices)) out = *found;
  }
  template <typename T>
  void choices(std::string_view key, std::vector<T>& out,
               std::span<const std::pair<std::string_view, T>> choices) {
    const YamlNode* list = sequence(key);
    if (list == nullptr) return;
    out.clear();
    for (std::size_t i = 0; i < list->children.size(); ++i)
      if (const auto found = one_of(list->children[i], item_path(key, i), choices)) out.push_back(*found);
  }

  /// The key's node, nullptr if it is absent. The key counts as known from now on.
  const YamlNode* find(std::string_view key);
  /// All entries, for a map whose keys are the user's own.
  const std::vector<YamlNode>& entries() {
    any_key_ = true;
    return node_->children;
  }
  /// The key's node if it is a list; anything else is a problem.
  const YamlNode* sequence(std::string_view key);

  bool has(std::string_view key) const { return lookup(key) != nullptr; }
  bool has_empty_list(std::string_view key) const {
    const YamlNode* node = lookup(key);
    return node != nullptr && node->kind == YamlNode::Kind::sequence && node->children.empty();
  }
  Problems& problems() { return *problems_; }
  std::string path_of(std::string_view key) const;
  std::string item_path(std::string_view key, std::size_t index) const;
  /// Notes a problem of this key (or of one below: tls.key_file), at its line, or the section's if it is not
  /// there.
  void complain(std::string_view key, std::string message, std::string remedy);

 private:
  const YamlNode* lookup(std::string_view key) const;
  const YamlNode* scalar(std::string_view key, std::string_view wanted);
  std::optional<std::uint64_t> whole_number(std::string_view key, std::uint64_t least, std::uint64_t most);
  void open();
  void wrong_type(const YamlNode& node, std::string path, std::string_view wanted);
  /// Notes the problem and returns false if the check has one.
  bool passes(const YamlNode& node, std::string path, Check check);

  template <typename T>
  std::optional<T> one_of(const YamlNode& node, std::string path,
                          std::span<const std::pair<std::string_view, T>> choices) {
    std::vector<std::string_view> words;
    for (const auto& [word, value] : choices) {
      if (node.kind == YamlNode::Kind::scalar && node.scalar == word) return value;
      words.push_back(word);
    }
    not_one_of(node, std::move(path), words);
    return std::nullopt;
  }
  void not_one_of(const YamlNode& node, std::string path, std::span<const std::string_view> words);

  Problems* problems_;
  const YamlNode* node_;
  std::string path_;
  std::vector<std::string_view> known_;
  bool any_key_ = false;
  bool secret_ = false;
};

}  // namespace kvmscope::hostd
