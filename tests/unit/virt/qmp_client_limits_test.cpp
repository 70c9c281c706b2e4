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
    // On a slow machine time is over before.
    if (say(kGreeting) && say(event("E")) && seen.empty()) wait(1);
    if (!seen.empty() && seen.front() == "event E") {
      seen.erase(seen.begin());
      wait(2);
      CHECK(message.starts_with("no reply to qmp_capabilities"));
    }
  }
  CHECK(Clock::now() - before >= 50ms);
  wait(2);
  CHECK(told() == Seen{"a: unavailable", "closed: deadline_exceeded"});
  CHECK(monitor.take().size() <= kNegotiate.size());
  CHECK(monitor.ended());
}

TEST_CASE("who is ready in time is not given up later") {
  for (auto deadline = 50ms;; deadline *= 2) {
    PlayedFixture run;
    run.options.handshake_deadline = deadline;
    run.start();
    const bool heard = run.say(kGreeting) && run.say(reply(0));
    if (!heard || run.told() != Seen{"ready 7"}) continue;  // this machine is slower than that
    run.loop.restart();
    run.loop.run_for(2 * deadline);
    CHECK(run.seen.empty());
    return;
  }
}

TEST_CASE_METHOD(PlayedFixture, "a command has its deadline, and a reply after it is dropped") {
  options.command_deadline = 300ms;
  ready();
  const auto before = Clock::now();
  execute("a");
  loop.restart();
  loop.run_for(50ms);
  execute("b");
  wait(1);
  CHECK(Clock::now() - before >= 300ms);
  wait(2);
  CHECK(Clock::now() - before >= 350ms);
  CHECK(told() == Seen{"a: deadline_exceeded", "b: deadline_exceeded"});
  CHECK(monitor.take() == command(1, "a") + command(2, "b"));
  say(reply(2) + event("E"));
  CHECK(told() == Seen{"event E"});
  CHECK(client->late_replies() == 1);
  execute("c");
  CHECK(monitor.take() == command(3, "c"));
  monitor.send(failure("\"id\": 1, ") + reply(3));
  wait(1);
  CHECK(client->late_replies() >= 2);
  CHECK(told().front().starts_with("c"));  // on a slow machine it was too late, too
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
  options.command_deadline = 300ms;
  const Seen first{"d: resource_exhausted", "a: deadline_exceeded", "b: deadline_exceeded",
                   "c: deadline_exceeded"};
  SECTION("sent") {
    ready();
    for (const char* name : {"a", "b", "c", "d"}) execute(name);
    wait(4);
    CHECK(told() == first);
    execute("e");
    settle();
    CHECK(told() == Seen{"e: resource_exhausted"});
    monitor.take();
    say(reply(2));
    execute("f");
    execute("g");
    CHECK(monitor.take() == command(4, "f"));
    settle();
    CHECK(told().front() == "g: resource_exhausted");
  }
  SECTION("not sent") {
    start();
    for (const char* name : {"a", "b", "c", "d"}) execute(name);
    wait(4);
    CHECK(told() == first);
    for (const char* name : {"a", "b", "c", "d"}) execute(name);
    wait(4);
    CHECK(told() == first);
  }
}

TEST_CASE_METHOD(PlayedFixture,
                 "a QEMU that never reads costs no more than the limit, and gets whole lines later") {
  options.command_deadline = 300ms;
  options.unsent_bytes = 1'000'000;
  ready();
  const json arguments{{"text", std::string(100'000, 'x')}};
  const auto line = [&](std::uint64_t id) { return qmp_command(id, "x", arguments); };
  // One is being written, the others wait.
  const std::size_t taken = 1 + options.unsent_bytes / line(10).size();
  for (std::size_t i = 0; i < taken; ++i) execute("x", arguments);
  execute("y", arguments);
  execute("z", {{"text", std::string(2'000'000, 'x')}});
  wait(taken + 2);
  Seen expected(taken, "x: deadline_exceeded");
  expected.insert(expected.begin(), {"y: resource_exhausted", "z: resource_exhausted"});
  CHECK(told() == expected);
  // What was not sent is no longer, and leaves its room.
  for (std::size_t i = 0; i < taken - 1; ++i) execute("x", arguments);
  wait(taken - 1);
  CHECK(told() == Seen(taken - 1, "x: deadline_exceeded"));

  std::string text;
  for (std::string more = "."; !more.empty(); text += more) {
    more = monitor.take();
    settle();
  }
  std::size_t sent = 0;
  for (std::size_t end = 0; !text.empty(); text.erase(0, end + 1)) {
    end = text.find('\n');
    const auto id = json::parse(text.substr(0, end)).at("id").get<std::uint64_t>();
    REQUIRE((text.starts_with(line(id))));
    say(reply(id));
    CHECK(client->late_replies() == ++sent);
  }
  CHECK(sent > 0);
  CHECK(sent < taken);
  execute("a");
  CHECK(monitor.take() == command(taken * 2, "a"));
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
