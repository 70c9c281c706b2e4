// SPDX-License-Identifier: Apache-2.0
#include "hostd/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <sstream>
#include <utility>

#include "hostd/config_values.h"

namespace kvmscope::hostd {
namespace {

constexpr std::size_t kMaxDepth = 16;
constexpr std::size_t kMaxNodes = 50'000;

unsigned line_of(const YAML::Mark& mark) {
  return mark.line < 0 ? 0 : static_cast<unsigned>(mark.line) + 1;
}

/// yaml-cpp can be stopped by an exception only; it is caught in parse_yaml().
struct Refused {
  YamlError error;
};

/// Builds the tree. The nodes still open are kept in a stack and moved into their parent when they end.
class TreeBuilder final : public YAML::EventHandler {
 public:
  YamlNode take_root() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    YamlNode node = begin(mark, "", anchor, YamlNode::Kind::null);
    end(std::move(node));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse_anchor(mark); }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    if (expects_key()) {
      begin(mark, tag, anchor, YamlNode::Kind::scalar);
      open_.back().pending_key = value;
      open_.back().pending_line = line_of(mark);
      open_.back().has_key = true;
      return;
    }
    YamlNode node = begin(mark, tag, anchor, YamlNode::Kind::scalar);
    node.quoted = tag == "!";
    node.scalar = value;
    end(std::move(node));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::sequence);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::map);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    YamlNode node;
    bool has_key = false;
    std::string pending_key;
    unsigned pending_line = 0;
  };

  bool expects_key() const {
    return !open_.empty() && open_.back().node.kind == YamlNode::Kind::map && !open_.back().has_key;
  }

  [[noreturn]] static void refuse_anchor(const YAML::Mark& mark) {
    throw Refused{
        {line_of(mark), "anchors and aliases are not supported", "write the value out where it is needed"}};
  }

  YamlNode begin(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YamlNode::Kind kind) {
    if (anchor != YAML::NullAnchor) refuse_anchor(mark);
    if (!tag.empty() && tag != "?" && tag != "!")
      throw Refused{{line_of(mark), "tags are not supported", "remove the word that begins with \"!\""}};
    if (++nodes_ > kMaxNodes)
      throw Refused{{line_of(mark), "more than 50000 values", "is this the right file?"}};
    if (expects_key() && kind != YamlNode::Kind::scalar)
      throw Refused{{line_of(mark), "a key must be a plain word", "write \"key: value\""}};
    YamlNode node;
    node.kind = kind;
    node.line = line_of(mark);
    if (!open_.empty() && open_.back().has_key) {
      node.key = std::move(open_.back().pending_key);
      node.line = open_.back().pending_line;
      open_.back().has_key = false;
    }
    return node;
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YamlNode::Kind kind) {
    YamlNode node = begin(mark, tag, anchor, kind);
    if (open_.size() >= kMaxDepth)
      throw Refused{{line_of(mark), "nested deeper than 16 levels", "is this the right file?"}};
    open_.push_back({std::move(node), false, {}, 0});
  }

  void close() {
    YamlNode node = std::move(open_.back().node);
    open_.pop_back();
    end(std::move(node));
  }

  void end(YamlNode node) {
    (open_.empty() ? root_ : open_.back().node.children.emplace_back()) = std::move(node);
  }

  YamlNode root_;
  std::vector<Open> open_;
  std::size_t nodes_ = 0;
};

}  // namespace

std::expected<YamlNode, YamlError> parse_yaml(std::string_view text) {
  if (text.size() > kMaxYamlBytes)
    return std::unexpected(YamlError{0, "is larger than 1 MiB", "is this the right file?"});
  if (text.find('\0') != std::string_view::npos)
    return std::unexpected(YamlError{0, "holds a NUL byte", "is this a text file?"});
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    TreeBuilder builder;
    parser.HandleNextDocument(builder);
    YamlNode root = builder.take_root();
    TreeBuilder rest;
    if (parser.HandleNextDocument(rest)) {
      const unsigned line = rest.take_root().line;
      return std::unexpected(
          YamlError{line, "a second document begins here", "keep one document, without \"---\" or \"...\""});
    }
    return root;
  } catch (const Refused& refused) {
    return std::unexpected(refused.error);
  } catch (const YAML::Exception& exception) {
    return std::unexpected(YamlError{line_of(exception.mark), "is not YAML: " + printable(exception.msg, 200),
                                     "check indentation (spaces, no tabs), colons and quotes near here"});
  }
}

}  // namespace kvmscope::hostd
