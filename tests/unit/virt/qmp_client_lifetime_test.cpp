// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <iterator>

#include "tests/unit/virt/qmp_fixture.h"

namespace kvmscope::virt {
namespace {

using namespace std::chrono_literals;

/// All that can be said, but of deadlines.
void converse(PlayedFixture& run) {
  run.options.open_commands = 5;
  run.start();
  for (const char* name : {"a", "b", "c", "d", "e", "f"}) run.execute(name);
  run.execute("x", 1);
  run.settle();
  for (const std::string& text :
       {kGreeting, reply(0), event("E1") + reply(3) + event("E2") + failure("\"id\": 1, "),
        std::string("garbage\n")}) {
    if (run.client) run.say(text);
    run.monitor.take();
  }
  run.execute("g");
  run.settle();
}

void two_deadlines(PlayedFixture& run) {
  run.options.command_deadline = 20ms;
  run.start();
  run.execute("a");
  run.execute("b");
  run.wait(run.destroy_at == "a: deadline_exceeded" ? 1 : 2);
  run.settle();
}

TEST_CASE("destruction in any callback: nobody is called afterwards") {
  PlayedFixture whole;
  converse(whole);
  CHECK(whole.seen == Seen{"f: resource_exhausted", "x: invalid_argument", "ready 7", "event E1", "c = {}",
                           "event E2", "a: another", "b: unavailable", "d: unavailable", "e: unavailable",
                           "closed: corrupt", "g: unavailable"});
  const auto destroyed_at = [](const std::string& at, void (*play)(PlayedFixture&)) {
    CAPTURE(at);
    PlayedFixture run;
    run.destroy_at = at;
    play(run);
    CHECK_FALSE(run.client);
    CHECK(run.seen.back() == at);
    run.monitor.take();
    CHECK(run.monitor.ended());
  };
  for (const std::string& at : whole.seen) destroyed_at(at, converse);
  for (const char* at : {"a: deadline_exceeded", "b: deadline_exceeded"}) destroyed_at(at, two_deadlines);
}

TEST_CASE("commands given in callbacks") {
  SECTION("are sent") {
    const std::string at = GENERATE(as<std::string>(), "ready 7", "event E", "a = {}", "x: invalid_argument");
    CAPTURE(at);
    PlayedFixture run;
    run.execute_at = at;
    run.start();
    run.execute("a");
    run.execute("x", 1);
    run.negotiate();
    run.say(event("E") + reply(1));
    CHECK(run.monitor.take() == command(1, "a") + command(2, "more"));
  }
  SECTION("at a deadline, too") {
    PlayedFixture run;
    run.execute_at = "a: deadline_exceeded";
    run.options.command_deadline = 20ms;
    run.start();
    run.execute("a");
    run.wait(2);
    CHECK(run.told() == Seen{"a: deadline_exceeded", "more: deadline_exceeded"});
  }
  SECTION("when all is over there is an answer") {
    const std::string at = GENERATE(as<std::string>(), "b: unavailable", "closed: unavailable");
    CAPTURE(at);
    PlayedFixture run;
    run.execute_at = at;
    run.ready();
    run.execute("b");
    run.execute("c");
    run.monitor.close();
    run.settle();
    CHECK(run.told() == Seen{"b: unavailable", "c: unavailable", "closed: unavailable", "more: unavailable"});
  }
}

TEST_CASE_METHOD(PlayedFixture, "destruction from outside: nobody is called") {
  SECTION("before the greeting") {
    start();
  }
  SECTION("with all under way") {
    ready();
    execute("a", {{"text", std::string(1'000'000, 'x')}});
    execute("b");
    execute("x", 1);
    monitor.send(event("E") + "garbage\n");
  }
  destroy();
  settle();
  CHECK(seen.empty());
  monitor.take();
  CHECK(monitor.ended());
}

TEST_CASE_METHOD(PlayedFixture, "nobody need listen to events") {
  auto made = QmpClient::connect(options, {});
  REQUIRE(made);
  client = std::move(*made);
  monitor.accept();
  negotiate();
  execute("a");
  say(event("E") + reply(1) + "garbage\n");
  CHECK(told() == Seen{"a = {}"});
}

TEST_CASE_METHOD(PlayedFixture, "a socket that cannot be connected to") {
  const auto code = [this](const std::string& path) {
    options.socket = path;
    const auto made = connect();
    REQUIRE_FALSE(made);
    return std::string(name_of(made.error().code()));
  };
  const auto open_files = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                         std::filesystem::directory_iterator());
  };
  const std::string path = options.socket;
  const auto before = open_files();
  CHECK(code(tree.path("none")) == "not_found");
  CHECK(code("") == "not_found");
  CHECK(code(tree.path(std::string(120, 'x'))) == "not_found");
  CHECK(open_files() == before);
  {
    // Its backlog is 1, as QEMU's.
    PlayedFixture first;
    PlayedFixture second;
    first.options.socket = second.options.socket = path;
    REQUIRE(first.connect());
    REQUIRE(second.connect());
    CHECK(code(path) == "unavailable");
  }
  monitor.stop_listening();
  CHECK(code(path) == "unavailable");
  settle();
  CHECK(seen.empty());
}

}  // namespace
}  // namespace kvmscope::virt
