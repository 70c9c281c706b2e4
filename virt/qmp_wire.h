// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "hostd/core/result.h"

namespace kvmscope::virt {

/// What QEMU says first (docs/interop/qmp-spec in QEMU's source is the authority for all of this file).
struct QmpGreeting {
  std::array<std::uint32_t, 3> version{};  ///< QEMU's major, minor, micro
  std::vector<std::string> capabilities;   ///< what a client may switch on: "oob", or nothing
};

/// Why QEMU did not do it.
struct QmpFailure {
  std::string error_class;  ///< "CommandNotFound", "DeviceNotFound", "GenericError", ...
  std::string description;  ///< for people; as long as QEMU likes
};

struct QmpReply {
  /// The command's. Empty if QEMU could not read so far as to know it.
  std::optional<std::uint64_t> id;
  std::expected<nlohmann::json, QmpFailure> result;
};

struct QmpEvent {
  std::string name;                                ///< "STOP", "BLOCK_IO_ERROR", ...
  nlohmann::json data = nlohmann::json::object();  ///< an object; empty if the event has none
  std::optional<std::uint64_t> unix_ns;            ///< QEMU's wall clock; empty if QEMU could not read it
};

using QmpMessage = std::variant<QmpGreeting, QmpReply, QmpEvent>;

/// What one message may cost, for what speaks there may be a guest that broke out of its VM.
struct QmpLimits {
  std::size_t line_bytes = std::size_t{10} << 20;  ///< as much as libvirt takes
  /// Levels of arrays and objects: nlohmann's parser is a loop, but its copy, comparison and output recurse.
  /// query-blockstats has a level for each image of a backing chain, of which libvirt allows 200.
  std::size_t depth = 512;
  /// Numbers, strings, arrays, objects: "{}," is three bytes on the wire, and more than 64 in memory.
  std::size_t values = 250'000;
};

/// Makes messages of a stream of bytes: JSON objects, one a line. Pure; one thread at a time.
///
/// Members that it does not know are ignored. A monitor with pretty=on, whose messages take many lines, is
/// not understood.
class QmpDecoder {
 public:
  explicit QmpDecoder(QmpLimits limits = {}) : limits_(limits) {}

  /// Keeps a copy, so feed small pieces and take all messages between them.
  void feed(std::string_view bytes);
  /// The next whole message; empty until more is fed. corrupt for what is no message of the protocol, or
  /// beyond the limits: then there is no next one, and every call gives the same error.
  core::Result<std::optional<QmpMessage>> next();

 private:
  core::Result<std::optional<QmpMessage>> next_line();

  QmpLimits limits_;
  std::string buffer_;
  std::size_t begin_ = 0;     ///< of the next line in the buffer
  std::size_t searched_ = 0;  ///< how far there is no line's end
  std::optional<core::Error> broken_;
};

/// The line that gives a command, of ASCII alone: what is no UTF-8 in it is replaced. `arguments` is an
/// object, or null for none.
std::string qmp_command(std::uint64_t id, const std::string& command, const nlohmann::json& arguments);

/// The text's begin as an error may carry it: at most 100 characters, none but printable ASCII.
std::string qmp_excerpt(std::string_view text);

}  // namespace kvmscope::virt
