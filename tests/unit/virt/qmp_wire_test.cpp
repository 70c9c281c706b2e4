// SPDX-License-Identifier: Apache-2.0
#include "virt/qmp_wire.h"

#include <algorithm>

#include "tests/support/catch.h"

namespace kvmscope::virt {
namespace {

using nlohmann::json;

// As QEMU 7.2 wrote them.
const std::string kGreeting =
    R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, )"
    R"("capabilities": ["oob"]}})"
    "\r\n";
const std::string kReply = "{\"return\": {\"status\": \"running\"}, \"id\": 7}\r\n";
const std::string kFailure =
    R"({"id": 8, "error": {"class": "CommandNotFound", "desc": "The command no-such has not been found"}})"
    "\r\n";
const std::string kEvent =
    R"({"timestamp": {"seconds": 1795299078, "microseconds": 351450}, "event": "SHUTDOWN", )"
    R"("data": {"guest": false}})"
    "\r\n";

struct Decoded {
  std::vector<QmpMessage> messages;
  std::optional<core::Error> error;
};

void take_all(QmpDecoder& decoder, Decoded& to) {
  while (true) {
    auto message = decoder.next();
    if (!message) to.error = message.error();
    if (!message || !*message) return;
    to.messages.push_back(std::move(**message));
  }
}

Decoded decode(const std::vector<std::string_view>& pieces, QmpLimits limits = {}) {
  QmpDecoder decoder(limits);
  Decoded decoded;
  for (const std::string_view piece : pieces) {
    decoder.feed(piece);
    take_all(decoder, decoded);
  }
  return decoded;
}

template <typename T>
T one(std::string_view line) {
  Decoded decoded = decode({line});
  if (decoded.error) FAIL(decoded.error->message());
  REQUIRE(decoded.messages.size() == 1);
  REQUIRE(std::holds_alternative<T>(decoded.messages[0]));
  return std::get<T>(decoded.messages[0]);
}

/// Also checks what every error must be like.
std::string error_of(std::string_view line, QmpLimits limits = {}) {
  const Decoded decoded = decode({line}, limits);
  CAPTURE(line.substr(0, 200));
  CHECK(decoded.messages.empty());
  REQUIRE(decoded.error);
  CHECK(decoded.error->code() == core::ErrorCode::corrupt);
  const std::string& message = decoded.error->message();
  CHECK(message.size() <= 160);
  CHECK(std::ranges::all_of(message, [](char c) { return c >= ' ' && c <= '~'; }));
  return message;
}

std::string greeting(const std::string& qemu, const std::string& capabilities) {
  return R"({"QMP": {"version": {"qemu": {)" + qemu + R"(}}, "capabilities": )" + capabilities + "}}";
}

TEST_CASE("a greeting, replies and events as QEMU writes them") {
  const auto greeting = one<QmpGreeting>(kGreeting);
  CHECK(greeting.version == std::array<std::uint32_t, 3>{7, 2, 22});
  CHECK(greeting.capabilities == std::vector<std::string>{"oob"});

  const auto reply = one<QmpReply>(kReply);
  CHECK(reply.id == 7);
  REQUIRE(reply.result);
  CHECK(*reply.result == json{{"status", "running"}});

  const auto failure = one<QmpReply>(kFailure);
  CHECK(failure.id == 8);
  REQUIRE_FALSE(failure.result);
  CHECK(failure.result.error().error_class == "CommandNotFound");
  CHECK(failure.result.error().description == "The command no-such has not been found");

  const auto event = one<QmpEvent>(kEvent);
  CHECK(event.name == "SHUTDOWN");
  CHECK(event.data == json{{"guest", false}});
  CHECK(event.unix_ns == 1'795'299'078'351'450'000);
}

TEST_CASE("what may be missing, or more") {
  CHECK_FALSE(one<QmpReply>("{\"return\": null}\n").id);  // QEMU did not get so far
  CHECK(one<QmpReply>("{\"return\": [1], \"id\": 18446744073709551615}\n").id == 18446744073709551615U);
  CHECK(*one<QmpReply>("{\"return\": {}, \"id\": 1, \"__com.redhat\": [{}]}\n").result == json::object());

  const auto event =
      one<QmpEvent>(R"({"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}, "more": 1})"
                    "\n");
  CHECK(event.data == json::object());
  CHECK_FALSE(event.unix_ns);  // QEMU could not read its clock

  CHECK(
      one<QmpGreeting>(greeting(R"("major": 10, "minor": 0, "micro": 1)", "[]") + "\n").capabilities.empty());
  CHECK(one<QmpReply>(" \t{\"return\": \"\xc3\xa4\\u00e4\\ud83d\\ude00\"} \r\n").result ==
        json("\xc3\xa4\xc3\xa4\xf0\x9f\x98\x80"));
}

TEST_CASE("bytes make the same messages however they are cut") {
  const std::string all = kGreeting + kEvent + kReply + "{\"return\": 1}\n" + kFailure;
  const auto check = [](const Decoded& decoded) {
    CHECK_FALSE(decoded.error);
    REQUIRE(decoded.messages.size() == 5);
    CHECK(std::get<QmpGreeting>(decoded.messages[0]).version[0] == 7);
    CHECK(std::get<QmpEvent>(decoded.messages[1]).name == "SHUTDOWN");
    CHECK(std::get<QmpReply>(decoded.messages[2]).id == 7);
    CHECK(std::get<QmpReply>(decoded.messages[3]).result == json(1));
    CHECK(std::get<QmpReply>(decoded.messages[4]).id == 8);
  };
  const std::string_view text = all;
  for (std::size_t at = 0; at <= text.size(); ++at) check(decode({text.substr(0, at), text.substr(at)}));

  std::vector<std::string_view> bytes;
  bytes.reserve(text.size());
  for (std::size_t at = 0; at < text.size(); ++at) bytes.push_back(text.substr(at, 1));
  check(decode(bytes));

  SECTION("and taken only when all is there") {
    QmpDecoder decoder;
    for (const std::string_view byte : bytes) decoder.feed(byte);
    Decoded decoded;
    take_all(decoder, decoded);
    check(decoded);
  }
  SECTION("half a message waits") {
    CHECK(decode({text.substr(0, text.size() - 1)}).messages.size() == 4);
  }
}

TEST_CASE("what is no message") {
  const std::vector<std::string> rows = {
      "",
      "\r",
      "garbage",
      "{",
      "{}",
      "[]",
      "null",
      "1",
      "\"x\"",
      "[{\"return\": {}}]",
      "{\"return\": {}}{\"return\": {}}",
      "{\"return\": {},}",
      "{'return': {}}",
      "{\"return\": 1e400}",
      "{\"return\": /* c */ 1}",
      "{\"return\": \"\x01\"}",
      "{\"return\": \"\xff\xfe\"}",
      "{\"return\": \"\xc0\xaf\"}",      // overlong
      "{\"return\": \"\xed\xa0\x80\"}",  // a surrogate
      "{\"return\": \"\\ud83d\"}",       // half a pair
      "\xff{\"return\": {}}",            // the guest agent's sentinel
      "\xef\xbb\xbf{\"return\": {}}",    // a byte order mark
      std::string("{\"return\": {}}\0", 15),
      std::string("{\"return\": \"\0\"}", 15),
      "{\"execute\": \"stop\"}",
      // of two kinds
      "{\"return\": {}, \"error\": {\"class\": \"c\", \"desc\": \"d\"}}",
      "{\"return\": {}, \"event\": \"STOP\"}",
      "{\"QMP\": {}, \"return\": {}}",
      // of another type
      "{\"return\": {}, \"id\": \"7\"}",
      "{\"return\": {}, \"id\": -7}",
      "{\"return\": {}, \"id\": 7.0}",
      "{\"return\": {}, \"id\": null}",
      "{\"return\": {}, \"id\": 18446744073709551616}",
      "{\"error\": \"x\"}",
      "{\"error\": {}}",
      "{\"error\": {\"class\": \"c\"}}",
      "{\"error\": {\"desc\": \"d\"}}",
      "{\"error\": {\"class\": 1, \"desc\": \"d\"}}",
      "{\"QMP\": 1}",
      greeting(R"("major": 7, "minor": 2)", "[]"),
      greeting(R"("major": -7, "minor": 2, "micro": 1)", "[]"),
      greeting(R"("major": 4294967296, "minor": 2, "micro": 1)", "[]"),
      greeting(R"("major": 7, "minor": 2, "micro": 1)", "[1]"),
      greeting(R"("major": 7, "minor": 2, "micro": 1)", "{}"),
      R"({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 1}}}})",
      "{\"event\": 1, \"timestamp\": {\"seconds\": 1, \"microseconds\": 1}}",
      "{\"event\": \"STOP\"}",
      "{\"event\": \"STOP\", \"timestamp\": 1}",
      "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1}}",
      "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": \"1\", \"microseconds\": 1}}",
      "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": -1, \"microseconds\": 1}}",
      "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 1000000}}",
      "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 9223372036854775807, \"microseconds\": 1}}",
      "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 9223372036854775808, \"microseconds\": 1}}",
      "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 1}, \"data\": 1}",
      std::string(5'000, '\xfe'),
  };
  for (const std::string& row : rows) CHECK_FALSE(error_of(row + "\n").empty());

  CHECK(error_of("g\x1b[2J\xc3\xa4" + std::string(200, 'x') + "\n") ==
        "no JSON object: g?[2J??" + std::string(93, 'x'));
  CHECK(
      error_of("{\"event\": \"STOP\", \"timestamp\": {}}\n").starts_with("an event with a wrong 'seconds'"));
}

TEST_CASE("after what is no message there is none") {
  QmpDecoder decoder;
  decoder.feed(kReply + "garbage\n" + kReply);
  Decoded decoded;
  take_all(decoder, decoded);
  CHECK(decoded.messages.size() == 1);
  REQUIRE(decoded.error);
  decoder.feed("\n" + kReply);
  for (int i = 0; i < 3; ++i) {
    const auto again = decoder.next();
    REQUIRE_FALSE(again);
    CHECK(again.error().message() == decoded.error->message());
  }
}

TEST_CASE("limits of a message") {
  SECTION("its length, whether it ends or not") {
    const std::string frame = "{\"return\": \"\"}";
    const auto of_length = [&](std::size_t size) {
      return "{\"return\": \"" + std::string(size - frame.size(), 'x') + "\"}";
    };
    const QmpLimits limits;
    CHECK(decode({of_length(limits.line_bytes) + "\n"}).messages.size() == 1);
    CHECK(error_of(of_length(limits.line_bytes + 1) + "\n").starts_with("a message that is too long"));
    CHECK(error_of(of_length(limits.line_bytes + 1)).starts_with("a message that is too long"));
    CHECK_FALSE(decode({of_length(limits.line_bytes)}).error);
    // What a line follows does not count for it.
    const QmpLimits small{.line_bytes = 30};
    const std::string three = of_length(30) + "\n" + of_length(30) + "\n" + of_length(30);
    CHECK(decode({three, "\n"}, small).messages.size() == 3);
  }
  SECTION("its depth") {
    const auto nested = [](std::size_t depth, const std::string& open, const std::string& close) {
      std::string text = "{\"return\": ";
      for (std::size_t i = 1; i < depth; ++i) text += open;
      text += "1";
      for (std::size_t i = 1; i < depth; ++i) text += close;
      return text + "}\n";
    };
    for (const auto& [open, close] : {std::pair{"[", "]"}, {"{\"a\": ", "}"}}) {
      auto reply = one<QmpReply>(nested(512, open, close));
      // What recurses does so no deeper than this.
      const json copy = *reply.result;
      CHECK((copy == *reply.result));
      CHECK(copy.dump().size() > 1'000);
      CHECK(error_of(nested(513, open, close)).starts_with("a message nested too deeply"));
      CHECK(error_of(nested(500'000, open, close)).starts_with("a message nested too deeply"));
    }
    CHECK(error_of(std::string(4'000'000, '[') + "\n").starts_with("a message nested too deeply"));
    // Brackets in strings are none, and a quoted quote ends no string.
    CHECK(one<QmpReply>("{\"return\": \"\\\"" + std::string(1'000, '[') + "\\\\\"}\n").result);
    CHECK(error_of("{\"return\": \"\\\\\", \"a\": " + std::string(1'000, '[') + "\n")
              .starts_with("a message nested too deeply"));
    // Many side by side are not deep.
    std::string wide = "{\"return\": [[]";
    for (int i = 0; i < 1'000; ++i) wide += ",[{}]";
    CHECK(one<QmpReply>(wide + "]}\n").result);
  }
  SECTION("what it takes in memory") {
    std::string many = "{\"return\": [0";
    for (int i = 0; i < 249'000; ++i) many += ",0";
    CHECK(one<QmpReply>(many + "]}\n").result);
    for (int i = 0; i < 1'000; ++i) many += ",0";
    CHECK(error_of(many + "]}\n").starts_with("a message of too many values"));
    std::string empty = "{\"return\": [{}";
    for (int i = 0; i < 125'000; ++i) empty += ",{}";
    CHECK(error_of(empty + "]}\n").starts_with("a message of too many values"));
    CHECK(one<QmpReply>("{\"return\": \"" + std::string(1'000'000, ',') + "\"}\n").result);
  }
}

TEST_CASE("a command is one line of ASCII") {
  CHECK(qmp_command(7, "stop", {}) == "{\"execute\":\"stop\",\"id\":7}\n");
  CHECK(qmp_command(7, "stop", json::object()) == "{\"execute\":\"stop\",\"id\":7}\n");
  const json arguments{{"id", "a\n\xc3\xa4\xff"}, {"boundaries", {1, 2}}};
  CHECK(qmp_command(18446744073709551615U, "x", arguments) ==
        "{\"arguments\":{\"boundaries\":[1,2],\"id\":\"a\\n\\u00e4\\ufffd\"},\"execute\":\"x\","
        "\"id\":18446744073709551615}\n");
}

}  // namespace
}  // namespace kvmscope::virt
