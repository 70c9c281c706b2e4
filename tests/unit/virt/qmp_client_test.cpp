// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <filesystem>

#include "tests/unit/virt/qmp_fixture.h"

namespace kvmscope::virt {
namespace {

TEST_CASE_METHOD(PlayedFixture, "greeting, negotiation, and only then commands") {
  start();
  execute("a");
  settle();
  CHECK(monitor.take().empty());
  say(kGreeting);
  CHECK(monitor.take() == kNegotiate);
  execute("b", {{"id", "disk0"}});
  say(event("EARLY"));
  CHECK(monitor.take().empty());
  CHECK(told() == Seen{"event EARLY"});
  say(reply(0));
  CHECK(told() == Seen{"ready 7"});
  CHECK(monitor.take() ==
        command(1, "a") + "{\"arguments\":{\"id\":\"disk0\"},\"execute\":\"b\",\"id\":2}\n");
  say(reply(1, "[1]"));
  CHECK(told() == Seen{"a = [1]"});
  execute("c");
  settle();
  CHECK(monitor.take() == command(3, "c"));
  say(reply(2) + reply(3, "7"));
  CHECK(told() == Seen{"b = {}", "c = 7"});
  destroy();
  settle();
  CHECK(monitor.ended());
  CHECK(seen.empty());
}

TEST_CASE_METHOD(PlayedFixture, "replies in any order, events in between, bytes one by one") {
  start();
  for (const char* name : {"a", "b", "c"}) execute(name);
  negotiate();
  CHECK(told() == Seen{"ready 7"});
  const std::string text = event("E1") + reply(3, "\"third\"") + event("E2") + event("E3") +
                           failure("\"id\": 1, ") + reply(2) + event("E4");
  const Seen expected{"event E1",   "c = \"third\"", "event E2", "event E3",
                      "a: another", "b = {}",        "event E4"};
  SECTION("at once") {
    say(text);
  }
  SECTION("byte by byte") {
    for (const char byte : text) say(std::string(1, byte));
  }
  CHECK(told() == expected);
  CHECK(message == "it ? broke");
}

TEST_CASE_METHOD(PlayedFixture, "what QEMU's refusals mean") {
  ready();
  const std::vector<std::pair<std::string, std::string>> rows = {{"CommandNotFound", "unsupported"},
                                                                 {"DeviceNotFound", "not_found"},
                                                                 {"KVMMissingCap", "unsupported"},
                                                                 {"GenericError", "another"},
                                                                 {"Newer", "another"}};
  for (std::size_t i = 0; i < rows.size(); ++i) {
    execute("a");
    settle();
    say(failure("\"id\": " + std::to_string(i + 1) + ", ", rows[i].first));
    CHECK(told() == Seen{"a: " + rows[i].second});
  }
}

/// With a and b open, however far they have come.
void broken_by(PlayedFixture& run, const std::string& text) {
  CAPTURE(text);
  run.monitor.take();
  run.say(text);
  CHECK(run.monitor.take().empty());
  CHECK(run.monitor.ended());
  CHECK(run.told() == Seen{"a: unavailable", "b: unavailable", "closed: corrupt"});
  CHECK(run.message.size() < 200);
  run.execute("c");
  CHECK(run.seen.empty());
  run.settle();
  CHECK(run.told() == Seen{"c: unavailable"});
}

TEST_CASE("what breaks the protocol ends the connection, and every command once") {
  for (const std::string& text : std::vector<std::string>{"garbage\n", "\xff\xfe\n", "{}\n", reply(0),
                                                          reply(1), reply(99), event("STOP"), failure(""),
                                                          failure("\"id\": 0, "), std::string(1'001, ' ')}) {
    PlayedFixture run;
    run.options.limits.line_bytes = 1'000;
    run.start();
    run.execute("a");
    run.execute("b");
    broken_by(run, text);
  }
  for (const std::string& text :
       std::vector<std::string>{kGreeting, "{\"return\": {}, \"id\": \"0\"}\n", reply(99) + kGreeting}) {
    PlayedFixture run;
    run.start();
    run.execute("a");
    run.execute("b");
    run.say(kGreeting);
    broken_by(run, text);
  }
  for (const std::string& text :
       std::vector<std::string>{kGreeting, reply(0), reply(3), reply(99), reply(18446744073709551615U),
                                failure(""), failure("\"id\": 99, "), "{\"return\": {}}\n", "\n"}) {
    PlayedFixture run;
    run.ready();
    run.execute("a");
    run.execute("b");
    run.settle();
    broken_by(run, text);
  }
  SECTION("a reply given twice") {
    PlayedFixture run;
    run.ready();
    run.execute("x");
    run.settle();
    run.say(reply(1));
    CHECK(run.told() == Seen{"x = {}"});
    run.execute("a");
    run.execute("b");
    run.settle();
    broken_by(run, reply(1));
  }
}

TEST_CASE_METHOD(PlayedFixture, "what QEMU said of its own is in the error") {
  ready();
  say(failure(""));
  CHECK(message == "a reply to no command: it ? broke");
}

TEST_CASE_METHOD(PlayedFixture, "a negotiation that is refused") {
  start();
  execute("a");
  say(kGreeting);
  say(failure("\"id\": 0, "));
  CHECK(told() == Seen{"a: unavailable", "closed: unsupported"});
  CHECK(message == "it ? broke");
}

TEST_CASE_METHOD(PlayedFixture, "replies to a former client come before the negotiation's, and are dropped") {
  start();
  execute("a");
  say(kGreeting);
  say(reply(1) + reply(99) + failure("") + failure("\"id\": 7, ") + "{\"return\": {}}\n");
  CHECK(seen.empty());
  say(reply(0));
  CHECK(told() == Seen{"ready 7"});
  CHECK(client->late_replies() == 5);
  say(reply(1, "5"));
  CHECK(told() == Seen{"a = 5"});
}

TEST_CASE_METHOD(PlayedFixture, "neither a link to a socket nor anything else is one") {
  const std::string real = options.socket;
  options.socket = tree.path("link");
  CHECK(connect().error().code() == core::ErrorCode::not_found);
  std::filesystem::create_symlink(real, options.socket);
  CHECK_FALSE(connect());
  std::filesystem::remove(options.socket);
  std::filesystem::create_directory(options.socket);
  CHECK(connect().error().code() == core::ErrorCode::invalid_argument);
}

TEST_CASE_METHOD(PlayedFixture, "another process's socket is not QEMU's") {
  options.qemu_pid = ::getppid();
  CHECK(connect().error().code() == core::ErrorCode::permission_denied);
  CHECK(seen.empty());
}

TEST_CASE_METHOD(PlayedFixture, "a QEMU that talks without end is left") {
  options.bytes_at_once = 20'000;
  options.bytes_per_second = 20'000;
  ready();
  const std::string talk = event("E");
  std::string some;
  while (some.size() < 10'000) some += talk;
  // As much as it may, for longer than what it may say at once lasts.
  const auto begin = std::chrono::steady_clock::now();
  for (int tenth = 1; tenth <= 15; ++tenth) {
    REQUIRE(say(some.substr(0, 1'900 / talk.size() * talk.size())));
    loop.restart();
    loop.run_until(begin + tenth * std::chrono::milliseconds(100));
  }
  CHECK(std::ranges::count(told(), "event E") == static_cast<std::ptrdiff_t>(15 * (1'900 / talk.size())));
  for (int i = 0; i < 5 && (seen.empty() || seen.back() == "event E"); ++i) say(some);
  CHECK(seen.back() == "closed: resource_exhausted");
}

TEST_CASE_METHOD(PlayedFixture, "a QEMU that reads no more is given up") {
  options.command_deadline = std::chrono::milliseconds(100);
  ready();
  monitor.shut_reading();
  execute("a");
  wait(2);
  CHECK(told() == Seen{"a: deadline_exceeded", "closed: unavailable"});
}

TEST_CASE("QEMU's end at every byte that it sends") {
  const std::vector<std::string> parts = {
      kGreeting, reply(0), event("E1") + reply(2, "2") + event("E2") + failure("\"id\": 1, ") + event("E3")};
  const std::vector<std::pair<std::size_t, std::string>> said = [&] {
    std::size_t at = kGreeting.size();
    const auto after = [&](const std::string& text) { return at += text.size(); };
    std::vector<std::pair<std::size_t, std::string>> list;
    list.emplace_back(after(reply(0)), "ready 7");
    list.emplace_back(after(event("E1")), "event E1");
    list.emplace_back(after(reply(2, "2")), "b = 2");
    list.emplace_back(after(event("E2")), "event E2");
    list.emplace_back(after(failure("\"id\": 1, ")), "a: another");
    list.emplace_back(after(event("E3")), "event E3");
    return list;
  }();
  for (std::size_t end = 0; end <= said.back().first; ++end) {
    CAPTURE(end);
    PlayedFixture run;
    run.start();
    run.execute("a");
    run.execute("b");
    std::size_t left = end;
    for (const std::string& part : parts) {
      run.say(part.substr(0, left));
      left -= std::min(left, part.size());
      run.monitor.take();
    }
    run.monitor.close();
    run.settle();
    Seen expected;
    for (const auto& [at, what] : said)
      if (end >= at) expected.push_back(what);
    if (end < said[4].first) expected.emplace_back("a: unavailable");
    if (end < said[2].first) expected.emplace_back("b: unavailable");
    expected.emplace_back("closed: unavailable");
    REQUIRE(run.seen == expected);
  }
}

TEST_CASE("QEMU's end at every byte that it reads") {
  const std::size_t all = (kNegotiate + command(1, "a") + command(2, "b")).size();
  for (std::size_t end = 0; end <= all; ++end) {
    CAPTURE(end);
    PlayedFixture run;
    run.start();
    run.execute("a");
    run.execute("b");
    run.say(kGreeting);
    const std::size_t got = run.monitor.take(end).size();
    const bool negotiated = got == kNegotiate.size();
    if (negotiated) {
      run.say(reply(0));
      REQUIRE(run.monitor.take(end - got).size() == end - got);
    }
    run.monitor.close();
    run.settle();
    Seen expected{"a: unavailable", "b: unavailable", "closed: unavailable"};
    if (negotiated) expected.insert(expected.begin(), "ready 7");
    REQUIRE(run.seen == expected);
  }
}

TEST_CASE_METHOD(PlayedFixture, "what QEMU said before it ended is heard, though nobody reads any more") {
  ready();
  monitor.send(event("SHUTDOWN"));
  monitor.close();
  execute("a");  // EPIPE, at once
  settle();
  CHECK(told() == Seen{"event SHUTDOWN", "a: unavailable", "closed: unavailable"});
}

TEST_CASE_METHOD(PlayedFixture, "arguments are an object") {
  ready();
  execute("a", nlohmann::json::array({1}));
  execute("b", "text");
  execute("c", nlohmann::json::object());
  CHECK(seen.empty());
  settle();
  CHECK(told() == Seen{"a: invalid_argument", "b: invalid_argument"});
  CHECK(monitor.take() == command(1, "c"));
}

}  // namespace
}  // namespace kvmscope::virt
