// SPDX-License-Identifier: Apache-2.0
#include "hostd/config_section.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <unordered_map>

namespace kvmscope::hostd {
namespace {

const YamlNode kEmpty;

std::string got(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::null:
      return "nothing";
    case YamlNode::Kind::scalar:
      return quoted(node.scalar);
    case YamlNode::Kind::sequence:
      return "a list";
    case YamlNode::Kind::map:
      return "a section";
  }
  return {};
}

std::string_view example_of(std::string_view wanted) {
  if (wanted == "a section") return "write indented \"key: value\" lines below it";
  if (wanted == "a list") return "write [one, two]";
  if (wanted == "true or false") return "write true or false";
  if (wanted == "a whole number") return "write digits without quotes";
  if (wanted == "a duration") return "write for example 10s or 500ms";
  if (wanted == "a size") return "write for example 64KiB or 16MiB";
  return "write one value, or remove the key";
}

}  // namespace

Section::Section(Problems& problems, const YamlNode& node, std::string path)
    : problems_(&problems), node_(&node), path_(std::move(path)) {
  open();
}

Section::Section(Section& parent, std::string_view key)
    : problems_(parent.problems_), node_(parent.find(key)), path_(parent.path_of(key)) {
  if (node_ == nullptr) node_ = &kEmpty;
  open();
}

Section::Section(Section& parent, std::string_view key, Secret)
    : problems_(parent.problems_), node_(parent.find(key)), path_(parent.path_of(key)), secret_(true) {
  if (node_ == nullptr) node_ = &kEmpty;
  open();
}

void Section::open() {
  if (node_->kind == YamlNode::Kind::scalar || node_->kind == YamlNode::Kind::sequence) {
    if (secret_)
      problems_->add(node_->line, path_, "must be a section", std::string(example_of("a section")));
    else
      wrong_type(*node_, path_, "a section");
    node_ = &kEmpty;
  }
  std::unordered_map<std::string_view, unsigned> first;
  for (const YamlNode& child : node_->children) {
    const auto [found, fresh] = first.emplace(child.key, child.line);
    if (!fresh)
      problems_->add(child.line, path_of(child.key),
                     fmt::format("is given twice (first on line {})", found->second), "remove one of them");
  }
}

Section::~Section() {
  if (any_key_) return;
  for (const YamlNode& child : node_->children) {
    if (std::ranges::find(known_, child.key) != known_.end()) continue;
    const std::string_view meant = nearest(child.key, known_);
    problems_->add(child.line, path_of(child.key), "is not a known key",
                   meant.empty() ? fmt::format("known here are {}", fmt::join(known_, ", "))
                                 : fmt::format("did you mean {}?", quoted(meant)));
  }
}

std::string Section::path_of(std::string_view key) const {
  if (secret_ && header_word(key) != key) return fmt::format("{}.{}...", path_, header_word(key));
  return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
}

std::string Section::item_path(std::string_view key, std::size_t index) const {
  return fmt::format("{}[{}]", path_of(key), index);
}

void Section::complain(std::string_view key, std::string message, std::string remedy) {
  const YamlNode* node = lookup(key);
  if (node == nullptr) node = lookup(key.substr(0, key.find('.')));
  problems_->add(node != nullptr ? node->line : node_->line, path_of(key), std::move(message),
                 std::move(remedy));
}

const YamlNode* Section::lookup(std::string_view key) const {
  const auto found = std::ranges::find(node_->children, key, &YamlNode::key);
  return found == node_->children.end() ? nullptr : &*found;
}

const YamlNode* Section::find(std::string_view key) {
  if (std::ranges::find(known_, key) == known_.end()) known_.push_back(key);
  return lookup(key);
}

const YamlNode* Section::scalar(std::string_view key, std::string_view wanted) {
  const YamlNode* node = find(key);
  if (node == nullptr || node->kind == YamlNode::Kind::scalar) return node;
  wrong_type(*node, path_of(key), wanted);
  return nullptr;
}

const YamlNode* Section::sequence(std::string_view key) {
  const YamlNode* node = find(key);
  if (node == nullptr || node->kind == YamlNode::Kind::sequence) return node;
  wrong_type(*node, path_of(key), "a list");
  return nullptr;
}

void Section::wrong_type(const YamlNode& node, std::string path, std::string_view wanted) {
  problems_->add(node.line, std::move(path), fmt::format("must be {} (got {})", wanted, got(node)),
                 std::string(example_of(wanted)));
}

bool Section::passes(const YamlNode& node, std::string path, Check check) {
  auto complaint = check(node.scalar);
  if (complaint)
    problems_->add(node.line, std::move(path), std::move(complaint->message), std::move(complaint->remedy));
  return !complaint;
}

void Section::not_one_of(const YamlNode& node, std::string path, std::span<const std::string_view> words) {
  const std::string_view meant = nearest(node.scalar, words);
  problems_->add(node.line, std::move(path),
                 fmt::format("must be one of {} (got {})", fmt::join(words, ", "), got(node)),
                 meant.empty() ? fmt::format("write for example {}", words.front())
                               : fmt::format("did you mean {}?", quoted(meant)));
}

void Section::text(std::string_view key, std::string& out, Check check) {
  const YamlNode* node = scalar(key, "a text");
  if (node != nullptr && passes(*node, path_of(key), check)) out = node->scalar;
}

void Section::texts(std::string_view key, std::vector<std::string>& out, Check check) {
  const YamlNode* list = sequence(key);
  if (list == nullptr) return;
  out.clear();
  for (std::size_t i = 0; i < list->children.size(); ++i) {
    const YamlNode& item = list->children[i];
    if (item.kind != YamlNode::Kind::scalar)
      wrong_type(item, item_path(key, i), "a text");
    else if (passes(item, item_path(key, i), check))
      out.push_back(item.scalar);
  }
}

void Section::boolean(std::string_view key, bool& out) {
  const YamlNode* node = scalar(key, "true or false");
  if (node == nullptr) return;
  if (!node->quoted && (node->scalar == "true" || node->scalar == "false"))
    out = node->scalar == "true";
  else
    wrong_type(*node, path_of(key), "true or false");
}

void Section::duration(std::string_view key, std::chrono::milliseconds& out, std::chrono::milliseconds least,
                       std::chrono::milliseconds most) {
  const YamlNode* node = scalar(key, "a duration");
  if (node == nullptr) return;
  const auto value = parse_duration(node->scalar);
  if (!value)
    wrong_type(*node, path_of(key), "a duration");
  else if (*value < least || *value > most)
    complain(key,
             fmt::format("must be between {} and {} (got {})", duration_text(least), duration_text(most),
                         got(*node)),
             "write a duration in this range");
  else
    out = *value;
}

bool Section::size(std::string_view key, std::uint64_t& out, std::uint64_t least, std::uint64_t most) {
  const YamlNode* node = scalar(key, "a size");
  if (node == nullptr) return false;
  const auto value = parse_size(node->scalar);
  if (!value) {
    wrong_type(*node, path_of(key), "a size");
    return false;
  }
  if (*value < least || *value > most) {
    complain(key,
             fmt::format("must be between {} and {} (got {})", size_text(least), size_text(most), got(*node)),
             "write a size in this range");
    return false;
  }
  out = *value;
  return true;
}

std::optional<std::uint64_t> Section::whole_number(std::string_view key, std::uint64_t least,
                                                   std::uint64_t most) {
  const YamlNode* node = scalar(key, "a whole number");
  if (node == nullptr) return std::nullopt;
  const char* end = node->scalar.data() + node->scalar.size();
  std::uint64_t value = 0;
  const auto [stop, error] = std::from_chars(node->scalar.data(), end, value);
  if (node->quoted || error == std::errc::invalid_argument || stop != end) {
    wrong_type(*node, path_of(key), "a whole number");
    return std::nullopt;
  }
  if (error == std::errc::result_out_of_range || value < least || value > most) {
    complain(key, fmt::format("must be between {} and {} (got {})", least, most, got(*node)),
             "write a number in this range");
    return std::nullopt;
  }
  return value;
}

}  // namespace kvmscope::hostd
