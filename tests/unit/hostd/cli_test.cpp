// SPDX-License-Identifier: Apache-2.0
// The program itself, as its users run it: against a real control socket, as other users, on a terminal.

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "hostd/core/unique_fd.h"
#include "hostd/views.h"
#include "tests/unit/hostd/running_server.h"

namespace kvmscope::hostd {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using tests::RunningServer;

struct User {
  uid_t uid;
  gid_t gid;
  std::vector<gid_t> groups;
};
constexpr uid_t kNobody = 65'534;

/// In the child: becomes the program. By descriptor, for another user need not reach the build tree.
[[noreturn]] void become(const std::vector<std::string>& arguments, const std::optional<User>& user) {
  const int program = ::open(KVMSCOPE_CLI, O_RDONLY);
  if (user && (::setgroups(user->groups.size(), user->groups.data()) != 0 ||
               ::setresgid(user->gid, user->gid, user->gid) != 0 ||
               ::setresuid(user->uid, user->uid, user->uid) != 0))
    ::_exit(98);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  ::fexecve(program, argv.data(), environ);
  ::_exit(99);
}

std::string drain(int fd) {
  std::string text;
  std::array<char, 4096> chunk{};
  for (ssize_t got = 0; (got = ::read(fd, chunk.data(), chunk.size())) > 0;)
    text.append(chunk.data(), static_cast<std::size_t>(got));
  return text;
}

int exit_code(pid_t child) {
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

struct Finished {
  int code = -1;
  std::string out;
  std::string err;
};

Finished run(std::vector<std::string> arguments, const std::optional<User>& user = {}) {
  arguments.insert(arguments.begin(), "kvmscope");
  int out[2];
  int err[2];
  REQUIRE(::pipe2(out, O_CLOEXEC) == 0);
  REQUIRE(::pipe2(err, O_CLOEXEC) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(out[1], STDOUT_FILENO);
    ::dup2(err[1], STDERR_FILENO);
    become(arguments, user);
  }
  ::close(out[1]);
  ::close(err[1]);
  Finished finished;
  finished.out = drain(out[0]);
  finished.err = drain(err[0]);
  ::close(out[0]);
  ::close(err[0]);
  finished.code = exit_code(child);
  return finished;
}

TopView reading(std::uint64_t time_unix_ns) {
  return {time_unix_ns,
          {{"web-1", "u", "acme", "", "vda", "read", 10, 40'960, 850'000, 900'000, 1'000'000, 900, 0, 10}}};
}

std::map<std::string, ControlHandler> commands() {
  // Every reading is told twice: asking more often than the daemon reads.
  auto asked = std::make_shared<std::atomic<std::uint64_t>>(0);
  return {{"vms",
           [](const json&) {
             return to_json(std::vector<VmView>{
                 {"u", "web\x1b[2J", 1, "acme", "", "nova", "attributed", 4711, 2, 3, 4, "e", {}, {}, ""}});
           }},
          {"tenants",
           [](const json&) {
             TenantView acme;
             acme.id = "acme";
             return to_json(std::vector<TenantView>{acme});
           }},
          {"check",
           [](const json&) { return to_json(std::vector<CheckLine>{{"btf", true, "from the daemon", ""}}); }},
          {"top", [asked](const json&) {
             return to_json(reading(1'700'000'000'000'000'000 + (*asked)++ / 2 * 10'000'000'000));
           }}};
}

TEST_CASE("kvmscope prints tables, and JSON for programs") {
  const RunningServer server(commands());
  const std::vector<std::string> socket = {"--socket", server.socket()};
  const auto with = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), socket.begin(), socket.end());
    return run(arguments);
  };
  const Finished vms = with({"vms"});
  CHECK(vms.code == 0);
  CHECK(vms.err.empty());
  CHECK(vms.out.find("web?[2J") != std::string::npos);
  CHECK(vms.out.find('\x1b') == std::string::npos);
  const auto same = vms_from_json(json::parse(with({"vms", "--json"}).out));
  REQUIRE(same);
  CHECK(same->at(0).name == "web\x1b[2J");
  CHECK(with({"tenants"}).out.starts_with("TENANT"));
  CHECK(json::parse(with({"tenants", "--json"}).out)[0]["id"] == "acme");
  CHECK(with({"check"}).out == "ok  btf  from the daemon\n");
  CHECK(json::parse(with({"check", "--json"}).out)[0]["name"] == "btf");
  CHECK(with({"top", "--once"}).out.find("web-1  acme     vda   read") != std::string::npos);
  const auto top = top_from_json(json::parse(with({"top", "--once", "--json"}).out));
  REQUIRE(top);
  CHECK(top->rows == reading(0).rows);
}

TEST_CASE("kvmscope without a daemon: status 2, one line, what to do") {
  const Finished vms = run({"--socket", "/nonexistent/control.sock", "vms"});
  CHECK(vms.code == 2);
  CHECK(vms.out.empty());
  CHECK(vms.err ==
        "kvmscope: no daemon answers on /nonexistent/control.sock (No such file or directory): start it "
        "(systemctl start "
        "kvmscope-hostd), or name its socket with --socket\n");
  CHECK(run({"--socket", "/nonexistent/control.sock", "top"}).code == 2);
  const Finished check = run({"--socket", "/nonexistent/control.sock", "check"});
  CHECK(check.code == 0);
  CHECK(check.out.find("does not answer on /nonexistent/control.sock") != std::string::npos);
  CHECK(check.out.find("capabilities") != std::string::npos);
}

TEST_CASE("kvmscope says what it does not understand") {
  CHECK(run({}).code != 0);
  CHECK(run({"vmz"}).code != 0);
  CHECK(run({"top", "--interval", "1"}).err.find("must be a duration") != std::string::npos);
  CHECK(run({"top", "--help"}).out.find("operations_per_s") != std::string::npos);
}

// Hidden: it becomes somebody else, which takes root. The test host-control runs it.
TEST_CASE("Another user is refused unless allowed: by name, by group, by supplementary group", "[.][root]") {
  REQUIRE(::geteuid() == 0);
  const User nobody{kNobody, kNobody, {}};
  const auto ask = [&](const ControlServer::Options& options, const User& user) {
    const RunningServer server(commands(), options);
    return run({"--socket", server.socket(), "vms"}, user);
  };
  // As installed: not even the socket can be reached.
  const Finished closed = ask({}, nobody);
  CHECK(closed.code == 3);
  CHECK(closed.err.starts_with("kvmscope: refused on "));
  CHECK(closed.err.find("connect: Permission denied") != std::string::npos);

  ControlServer::Options options;
  options.allow_groups = {"daemon"};  // group 1 on every Debian
  const Finished stranger = ask(options, nobody);
  CHECK(stranger.code == 3);
  CHECK(stranger.err.find("this user may not control the daemon") != std::string::npos);
  CHECK(ask(options, {kNobody, 1, {}}).code == 0);
  CHECK(ask(options, {kNobody, kNobody, {5, 1, 6}}).code == 0);
  CHECK(ask(options, {kNobody, kNobody, {5, 6}}).code == 3);
  std::vector<gid_t> many;
  for (gid_t group = 2'000; group < 2'200; ++group) many.push_back(group);
  CHECK(ask(options, {kNobody, kNobody, many}).code == 3);
  many.push_back(1);
  CHECK(ask(options, {kNobody, kNobody, many}).code == 0);
  options.allow_groups = {};
  options.allow_users = {"nobody"};
  CHECK(ask(options, nobody).code == 0);
  CHECK(ask(options, {1, 1, {}}).code == 3);
}

/// Reads until `enough` says so, or ten seconds have passed.
template <typename Enough>
std::string read_until(int fd, Enough enough) {
  std::string text;
  std::array<char, 4096> chunk{};
  const auto deadline = std::chrono::steady_clock::now() + 10s;
  while (!enough(text) && std::chrono::steady_clock::now() < deadline) {
    pollfd entry{fd, POLLIN, 0};
    if (::poll(&entry, 1, 100) != 1) continue;
    const ssize_t got = ::read(fd, chunk.data(), chunk.size());
    if (got <= 0) break;
    text.append(chunk.data(), static_cast<std::size_t>(got));
  }
  return text;
}

std::size_t count(const std::string& text, std::string_view what) {
  std::size_t found = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++found;
  return found;
}

TEST_CASE("top into a pipe: each reading once, until it is told to end") {
  const RunningServer server(commands());
  int out[2];
  REQUIRE(::pipe2(out, O_CLOEXEC) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(out[1], STDOUT_FILENO);
    become({"kvmscope", "--socket", server.socket(), "top", "--interval", "100ms", "--json"}, {});
  }
  ::close(out[1]);
  const std::string text =
      read_until(out[0], [](const std::string& so_far) { return count(so_far, "\n") >= 3; });
  ::kill(child, SIGTERM);
  CHECK(exit_code(child) == 0);
  ::close(out[0]);
  std::istringstream lines(text);
  std::uint64_t last = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto top = top_from_json(json::parse(line));
    REQUIRE(top);
    CHECK(top->time_unix_ns > last);
    last = top->time_unix_ns;
  }
}

TEST_CASE("top on a terminal: redrawn in place, and the terminal is given back") {
  const RunningServer server(commands());
  int terminal = -1;
  const winsize size{10, 60, 0, 0};
  const pid_t child = ::forkpty(&terminal, nullptr, nullptr, &size);
  if (child == 0) become({"kvmscope", "--socket", server.socket(), "top", "--interval", "100ms"}, {});
  std::string text =
      read_until(terminal, [](const std::string& so_far) { return count(so_far, "\x1b[H") >= 2; });
  CHECK(text.starts_with("\x1b[?1049h\x1b[?25l"));
  CHECK(text.find("\x1b[1mVM\x1b[0m") != std::string::npos);
  // Ctrl-C, as a terminal gives it.
  REQUIRE(::write(terminal, "\x03", 1) == 1);
  text = read_until(terminal, [](const std::string& so_far) {
    return so_far.find("\x1b[?1049l") != std::string::npos && count(so_far, "web-1") > 0;
  });
  CHECK(text.find("\x1b[?25h\x1b[?1049l") != std::string::npos);
  // The last frame stays on the screen.
  CHECK(text.substr(text.find("\x1b[?1049l")).find("web-1") != std::string::npos);
  CHECK(exit_code(child) == 0);
  ::close(terminal);
}

}  // namespace
}  // namespace kvmscope::hostd
