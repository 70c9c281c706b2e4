// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/virt/qmp_fixture.h"

namespace kvmscope::virt {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

TEST_CASE_METHOD(PlayedFixture, "who accepts and does not greet, or does not answer, is given up") {
  options.handshake_deadline = 50ms;
  const auto before = Clock::now();
  start();
  execute("a");
  SECTION("no greeting") {
    wait(2);
    CHECK(message.starts_with("no greeting"));
  }
  SECTION("half a greeting") {
    say(kGreeting.substr(0, 30));
    wait(2);
    CHECK(message.starts_with("no greeting"));
  }
  SECTION("no reply") {
    say(kGreeting);
    say(event("E"));
    if (seen.empty()) wait(1);  // else time was over before
    seen.erase(seen.begin());
    wait(2);
    CHECK(message.starts_with("no reply to qmp_capabilities"));
  }
  CHECK(Clock::now() - before >= 50ms);
  CHECK(told() == Seen{"a: deadline_exceeded", "closed: deadline_exceeded"});
  CHECK(monitor.take().size() <= kNegotiate.size());
  CHECK(monitor.ended());
}

TEST_CASE_METHOD(PlayedFixture, "who is ready in time is not given up later") {
  options.handshake_deadline = 400ms;
  ready();
  loop.restart();
  loop.run_for(600ms);
  CHECK(seen.empty());
}

TEST_CASE_METHOD(PlayedFixture, "a command has its deadline, and a reply after it is dropped") {
  options.command_deadline = 600ms;
  ready();
  const auto before = Clock::now();
  execute("a");
  loop.restart();
  loop.run_for(100ms);
  execute("b");
  wait(1);
  CHECK(Clock::now() - before >= 600ms);
  wait(2);
  CHECK(Clock::now() - before >= 700ms);
  CHECK(told() == Seen{"a: deadline_exceeded", "b: deadline_exceeded"});
  CHECK(monitor.take() == command(1, "a") + command(2, "b"));
  execute("c");
  monitor.send(reply(2) + reply(3, "3"));
  settle();
  CHECK(told() == Seen{"c = 3"});
  CHECK(client->late_replies() == 1);
  say(failure("\"id\": 1, "));
  CHECK(client->late_replies() == 2);
  CHECK(seen.empty());
  // Once.
  say(reply(1));
  CHECK(told() == Seen{"closed: corrupt"});
}

TEST_CASE_METHOD(PlayedFixture, "time before the negotiation counts, and what is too late is not sent") {
  options.command_deadline = 50ms;
  start();
  execute("a");
  wait(1);
  CHECK(told() == Seen{"a: deadline_exceeded"});
  negotiate();
  CHECK(told() == Seen{"ready 7"});
  CHECK(monitor.take().empty());
  // So no reply can be to it.
  say(reply(1));
  CHECK(told() == Seen{"closed: corrupt"});
}

TEST_CASE_METHOD(PlayedFixture, "open commands are bounded, and one that QEMU owes a reply is open") {
  options.open_commands = 3;
  options.command_deadline = 600ms;
  SECTION("sent") {
    ready();
    for (const char* name : {"a", "b", "c", "d"}) execute(name);
    CHECK(seen.empty());
    settle();
    CHECK(told() == Seen{"d: resource_exhausted"});
    wait(3);
    CHECK(told() == Seen{"a: deadline_exceeded", "b: deadline_exceeded", "c: deadline_exceeded"});
    execute("e");
    settle();
    CHECK(told() == Seen{"e: resource_exhausted"});
    say(reply(2));
    execute("f");
    execute("g");
    monitor.send(reply(4));
    settle();
    CHECK(told() == Seen{"g: resource_exhausted", "f = {}"});
  }
  SECTION("not sent") {
    start();
    for (const char* name : {"a", "b", "c", "d"}) execute(name);
    wait(4);
    CHECK(told() == Seen{"d: resource_exhausted", "a: deadline_exceeded", "b: deadline_exceeded",
                         "c: deadline_exceeded"});
    for (const char* name : {"e", "f", "g", "h"}) execute(name);
    settle();
    CHECK(told() == Seen{"h: resource_exhausted"});
  }
}

TEST_CASE_METHOD(PlayedFixture,
                 "a QEMU that never reads costs no more than the limit, and gets whole lines later") {
  options.command_deadline = 600ms;
  options.unsent_bytes = 1'000'000;
  ready();
  const json arguments{{"text", std::string(100'000, 'x')}};
  const std::size_t size = qmp_command(10, "x", arguments).size();
  // One is being written, the others wait.
  const std::size_t taken = 1 + options.unsent_bytes / size;
  for (std::size_t i = 0; i < taken; ++i) execute("x", arguments);
  execute("y", arguments);
  settle();
  CHECK(told() == Seen{"y: resource_exhausted"});
  execute("z", {{"text", std::string(2'000'000, 'x')}});
  settle();
  CHECK(told() == Seen{"z: resource_exhausted"});
  wait(taken);
  CHECK(told() == Seen(taken, "x: deadline_exceeded"));

  // What was not sent is no longer, and leaves its room.
  for (std::size_t i = 0; i < taken - 1; ++i) execute("w", arguments);
  settle();
  CHECK(seen.empty());
  wait(taken - 1);
  CHECK(told() == Seen(taken - 1, "w: deadline_exceeded"));

  std::string text;
  for (std::string more = "."; !more.empty(); text += more) {
    more = monitor.take();
    settle();
  }
  std::size_t sent = 0;
  for (std::size_t at = 0; at < text.size(); at += qmp_command(++sent, "x", arguments).size())
    REQUIRE(text.substr(at, qmp_command(sent + 1, "x", arguments).size()) ==
            qmp_command(sent + 1, "x", arguments));
  CHECK(sent > 0);
  CHECK(sent < taken);
  for (std::size_t id = 1; id <= sent; ++id) say(reply(id));
  CHECK(client->late_replies() == sent);
  execute("a");
  monitor.send(reply(taken * 2));
  settle();
  CHECK(told() == Seen{"a = {}"});
}

TEST_CASE_METHOD(PlayedFixture, "a long command is written in parts") {
  options.unsent_bytes = 10'000'000;
  ready();
  const json arguments{{"text", std::string(3'000'000, 'x')}};
  execute("a", arguments);
  execute("b");
  std::string text;
  for (std::string more = "."; !more.empty(); text += more) {
    settle();
    more = monitor.take(10'007);
  }
  CHECK((text == qmp_command(1, "a", arguments) + command(2, "b")));
  SECTION("and its end may come in the middle") {
    execute("c", arguments);
    settle();
    CHECK(monitor.take(10'007).size() == 10'007);
    settle();
    monitor.close();
    settle();
    CHECK(told() == Seen{"a: unavailable", "b: unavailable", "c: unavailable", "closed: unavailable"});
  }
}

TEST_CASE_METHOD(PlayedFixture, "a long reply is read in parts") {
  ready();
  execute("a");
  settle();
  const std::string text = reply(1, "\"" + std::string(3'000'000, 'x') + "\"") + event("E");
  for (std::size_t at = 0; at < text.size(); at += 10'007) say(text.substr(at, 10'007));
  REQUIRE(seen.size() == 2);
  CHECK(seen[0].size() == 3'000'000 + 6);
  CHECK(seen[1] == "event E");
}

}  // namespace
}  // namespace kvmscope::virt
