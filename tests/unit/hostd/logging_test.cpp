// SPDX-License-Identifier: Apache-2.0
#include "hostd/logging.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <nlohmann/json.hpp>
#include <string>

#include "hostd/core/unique_fd.h"
#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

constexpr std::int64_t kTime = 1'700'000'000'007;

std::string text(std::string_view message, std::initializer_list<LogField> fields) {
  return format_event(LogFormat::text, kTime, LogLevel::warn, message, {fields.begin(), fields.size()});
}

TEST_CASE("Text: time, level, message, fields") {
  CHECK(text("stream fails", {{"tenant", "4f1a"},
                              {"attempts", 3},
                              {"share", 0.5},
                              {"held", true},
                              {"bytes", std::uint64_t{1} << 63}}) ==
        "2023-11-14T22:13:20.007Z warn stream fails tenant=4f1a attempts=3 share=0.5 held=true "
        "bytes=9223372036854775808");
}

TEST_CASE("Text: a value cannot forge a field or a line") {
  CHECK(text("vm", {{"name", "x tenant=other"}}) ==
        "2023-11-14T22:13:20.007Z warn vm name=\"x tenant=other\"");
  CHECK(text("vm", {{"name", "x\" tenant=other y=\""}}) ==
        "2023-11-14T22:13:20.007Z warn vm name=\"x\\\" tenant=other y=\\\"\"");
  CHECK(text("vm", {{"name", "x\n2023-11-14T22:13:20.007Z error forged"}, {"n", ""}}) ==
        "2023-11-14T22:13:20.007Z warn vm name=\"x\\n2023-11-14T22:13:20.007Z error forged\" n=\"\"");
  CHECK(text("vm\nforged", {{"name", std::string("\0\x1b[2J\xff\\", 7)}}) ==
        "2023-11-14T22:13:20.007Z warn vm\\nforged name=\"\\x00\\x1b[2J\\xff\\\\\"");
}

TEST_CASE("JSON: one object, the same facts") {
  const LogField fields[] = {{"name", "x\n\"y\"\xff"}, {"n", -1}, {"ok", false}};
  const std::string line = format_event(LogFormat::json, kTime, LogLevel::error, "gone", fields);
  CHECK(line.find('\n') == std::string::npos);
  CHECK(line.starts_with(R"({"ts":"2023-11-14T22:13:20.007Z","level":"error","msg":"gone","name":)"));
  const auto parsed = nlohmann::json::parse(line);
  CHECK(parsed["name"] == "x\n\"y\"\xef\xbf\xbd");
  CHECK(parsed["n"] == -1);
  CHECK(parsed["ok"] == false);
}

/// What is written to stderr meanwhile.
template <typename Body>
std::string captured_stderr(Body body) {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  const core::UniqueFd in(ends[0]);
  core::UniqueFd out(ends[1]);
  const core::UniqueFd before(::dup(STDERR_FILENO));
  ::dup2(out.get(), STDERR_FILENO);
  body();
  ::dup2(before.get(), STDERR_FILENO);
  out.reset();
  std::string text;
  std::array<char, 4096> chunk{};
  for (ssize_t got = 0; (got = ::read(in.get(), chunk.data(), chunk.size())) > 0;)
    text.append(chunk.data(), static_cast<std::size_t>(got));
  return text;
}

TEST_CASE("Lines go to stderr, from the level on that was asked for") {
  const std::string out = captured_stderr([] {
    init_logging({LogLevel::warn, LogFormat::text});
    log_event(LogLevel::info, "not this");
    log_event(LogLevel::warn, "{} this", {{"vm", "a b"}});
    init_logging({LogLevel::debug, LogFormat::json});
    log_event(LogLevel::debug, "and this");
  });
  CHECK(out.find("not this") == std::string::npos);
  CHECK(out.find("Z warn {} this vm=\"a b\"\n{\"ts\":\"") != std::string::npos);
  CHECK(out.ends_with("\"level\":\"debug\",\"msg\":\"and this\"}\n"));
}

}  // namespace
}  // namespace kvmscope::hostd
