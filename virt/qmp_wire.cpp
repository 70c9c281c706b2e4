// SPDX-License-Identifier: Apache-2.0
#include "virt/qmp_wire.h"

#include <algorithm>
#include <utility>

#include "virt/qmp_json.h"

namespace kvmscope::virt {

using core::ErrorCode;
using nlohmann::json;

// Not in the unnamed namespace: read_member() finds them by the namespace of what they read.

static bool read_json(const json& from, QmpGreeting& to, std::string& wrong) {
  const json* version = nullptr;
  const json* qemu = nullptr;
  return read_member(from, "version", version, wrong) && read_member(*version, "qemu", qemu, wrong) &&
         read_member(*qemu, "major", to.version[0], wrong) &&
         read_member(*qemu, "minor", to.version[1], wrong) &&
         read_member(*qemu, "micro", to.version[2], wrong) &&
         read_member(from, "capabilities", to.capabilities, wrong);
}

static bool read_json(const json& from, QmpFailure& to, std::string& wrong) {
  return read_member(from, "class", to.error_class, wrong) &&
         read_member(from, "desc", to.description, wrong);
}

namespace {

constexpr std::size_t kExcerpt = 100;
/// Of the buffer, once a long message is over.
constexpr std::size_t kKeptBytes = 65'536;

core::Error corrupt(std::string_view reason, std::string_view line) {
  return {ErrorCode::corrupt, std::string(reason) + ": " + qmp_excerpt(line)};
}

/// Why the line is not to be parsed, empty if it may be. Where the line is no JSON this counts wrongly, but
/// right up to the place where the parser stops.
std::string_view objection(std::string_view line, const QmpLimits& limits) {
  std::size_t depth = 0;
  std::size_t values = 1;
  bool in_string = false;
  bool escaped = false;
  for (const char c : line) {
    if (c == '\0') return "a NUL in a message";  // nlohmann's parser takes it for the end
    if (in_string) {
      in_string = escaped || c != '"';
      escaped = !escaped && c == '\\';
      continue;
    }
    in_string = c == '"';
    const bool opens = c == '[' || c == '{';
    if (opens && ++depth > limits.depth) return "a message nested too deeply";
    if ((opens || c == ',') && ++values > limits.values) return "a message of too many values";
    if ((c == ']' || c == '}') && depth > 0) --depth;
  }
  return {};
}

struct Time {
  std::optional<std::uint64_t> unix_ns;
};

bool read_json(const json& from, Time& to, std::string& wrong) {
  constexpr std::int64_t kMaxSeconds = std::int64_t{1} << 33;  // the year 2242; in ns it fits
  std::int64_t seconds = 0;
  std::int64_t microseconds = 0;
  if (!read_member(from, "seconds", seconds, wrong) ||
      !read_member(from, "microseconds", microseconds, wrong))
    return false;
  if (seconds == -1 && microseconds == -1) return true;  // QEMU could not read its clock
  if (seconds < 0 || seconds > kMaxSeconds || microseconds < 0 || microseconds >= 1'000'000) return false;
  to.unix_ns =
      static_cast<std::uint64_t>(seconds) * 1'000'000'000 + static_cast<std::uint64_t>(microseconds) * 1'000;
  return true;
}

core::Result<QmpMessage> greeting(const json& message, std::string_view line) {
  QmpGreeting greeting;
  std::string wrong;
  if (!read_member(message, "QMP", greeting, wrong))
    return core::fail(corrupt("a greeting with a wrong '" + wrong + "'", line));
  return greeting;
}

core::Result<QmpMessage> reply(json& message, std::string_view line) {
  QmpReply reply;
  std::string wrong;
  QmpFailure failure;
  if (!read_member(message, "id", reply.id, wrong) ||
      (message.contains("error") && !read_member(message, "error", failure, wrong)))
    return core::fail(corrupt("a reply with a wrong '" + wrong + "'", line));
  if (const auto value = message.find("return"); value != message.end())
    reply.result = std::move(*value);
  else
    reply.result = std::unexpected(std::move(failure));
  return reply;
}

core::Result<QmpMessage> event(json& message, std::string_view line) {
  QmpEvent event;
  std::string wrong;
  Time time;
  if (!read_member(message, "event", event.name, wrong) || !read_member(message, "timestamp", time, wrong))
    return core::fail(corrupt("an event with a wrong '" + wrong + "'", line));
  event.unix_ns = time.unix_ns;
  if (const auto data = message.find("data"); data != message.end()) event.data = std::move(*data);
  if (!event.data.is_object()) return core::fail(corrupt("an event with a wrong 'data'", line));
  return event;
}

core::Result<QmpMessage> decode(std::string_view line, const QmpLimits& limits) {
  if (const auto reason = objection(line, limits); !reason.empty()) return core::fail(corrupt(reason, line));
  // The parser would pass over a byte order mark.
  json message = line.starts_with("\xef\xbb\xbf") ? json() : json::parse(line, nullptr, false);
  if (!message.is_object()) return core::fail(corrupt("no JSON object", line));
  const auto has = [&](const char* name) { return message.contains(name) ? 1 : 0; };
  if (has("QMP") + has("return") + has("error") + has("event") != 1)
    return core::fail(corrupt("neither greeting, reply nor event", line));
  if (has("QMP") != 0) return greeting(message, line);
  if (has("event") != 0) return event(message, line);
  return reply(message, line);
}

}  // namespace

std::string qmp_command(std::uint64_t id, const std::string& command, const json& arguments) {
  json message{{"execute", command}, {"id", id}};
  if (!arguments.empty()) message["arguments"] = arguments;
  return message.dump(-1, ' ', true, json::error_handler_t::replace) + '\n';
}

std::string qmp_excerpt(std::string_view text) {
  std::string excerpt(text.substr(0, kExcerpt));
  std::ranges::replace_if(excerpt, [](char c) { return c < ' ' || c > '~'; }, '?');
  return excerpt;
}

void QmpDecoder::feed(std::string_view bytes) {
  if (broken_) return;
  buffer_.erase(0, begin_);
  searched_ -= std::exchange(begin_, 0);
  if (buffer_.capacity() > kKeptBytes && buffer_.size() < kKeptBytes) buffer_.shrink_to_fit();
  buffer_ += bytes;
}

core::Result<std::optional<QmpMessage>> QmpDecoder::next() {
  if (broken_) return core::fail(*broken_);
  auto message = next_line();
  if (!message) broken_ = message.error();
  return message;
}

core::Result<std::optional<QmpMessage>> QmpDecoder::next_line() {
  const std::size_t end = buffer_.find('\n', searched_);
  const bool whole = end != std::string::npos;
  searched_ = whole ? end + 1 : buffer_.size();
  const auto line = std::string_view(buffer_).substr(begin_, (whole ? end : searched_) - begin_);
  if (line.size() > limits_.line_bytes) return core::fail(corrupt("a message that is too long", line));
  if (!whole) return std::nullopt;
  begin_ = searched_;
  return decode(line, limits_);
}

}  // namespace kvmscope::virt
