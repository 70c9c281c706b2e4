// SPDX-License-Identifier: Apache-2.0
#include "hostd/control.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "hostd/control_client.h"
#include "hostd/core/unique_fd.h"
#include "tests/unit/hostd/running_server.h"

namespace kvmscope::hostd {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using tests::RunningServer;
using Clock = std::chrono::steady_clock;

std::map<std::string, ControlHandler> commands() {
  return {{"echo", [](const json& request) { return request; }},
          {"typed", [](const json& request) { return request.at("number").get<int>(); }},
          {"throws", [](const json&) -> json { throw std::runtime_error("no such thing"); }},
          {"big", [](const json&) { return std::string(8U << 20, 'x'); }},
          {"binary", [](const json&) { return "\xff\xfe"; }}};
}

core::UniqueFd raw_connection(const std::string& path) {
  core::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  REQUIRE(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  const timeval limit{10, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  return fd;
}

void send_text(const core::UniqueFd& fd, std::string_view text) {
  static_cast<void>(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL));
}

/// The next line; empty if the connection ended.
std::string next_line(const core::UniqueFd& fd) {
  std::string line;
  for (char c = 0; ::recv(fd.get(), &c, 1, 0) == 1;) {
    if (c == '\n') return line;
    line += c;
  }
  return {};
}

std::string error_code_of(const std::string& line) {
  return json::parse(line)["error"]["code"];
}

TEST_CASE("A request gets its command's answer") {
  const RunningServer server(commands());
  const auto reply = control_call(server.socket(), {{"command", "echo"}, {"x", 7}}, 5s);
  REQUIRE(reply);
  CHECK(*reply == json({{"command", "echo"}, {"x", 7}}));
}

TEST_CASE("A connection serves one request after the other, however they are cut") {
  const RunningServer server(commands());
  const core::UniqueFd fd = raw_connection(server.socket());
  send_text(fd, "{\"command\":\"ec");
  ::usleep(20'000);
  send_text(fd, "ho\",\"n\":1}\n{\"command\":\"echo\",\"n\":2}\n");
  CHECK(json::parse(next_line(fd))["result"]["n"] == 1);
  CHECK(json::parse(next_line(fd))["result"]["n"] == 2);
}

TEST_CASE("What is no request is answered, and the next one is served") {
  const RunningServer server(commands());
  const core::UniqueFd fd = raw_connection(server.socket());
  for (const char* bad : {"", "x", "[]", "3", "null", "{", "{}", "{\"command\":3}", "\xff\xfe{}",
                          "{\"command\":\"typed\",\"number\":\"x\"}", "{\"command\":\"typed\"}"}) {
    INFO(bad);
    send_text(fd, std::string(bad) + "\n");
    CHECK(error_code_of(next_line(fd)) == "bad_request");
  }
  send_text(fd, "{\"command\":\"none\"}\n");
  CHECK(error_code_of(next_line(fd)) == "unknown_command");
  send_text(fd, "{\"command\":\"throws\"}\n");
  CHECK(next_line(fd) == R"({"error":{"code":"internal","message":"no such thing"},"ok":false})");
  send_text(fd, "{\"command\":\"binary\"}\n");
  CHECK(json::parse(next_line(fd))["ok"] == true);
  send_text(fd, std::string(60'000, '[') + "\n");  // deep, and still below the limit
  CHECK(error_code_of(next_line(fd)) == "bad_request");
}

TEST_CASE("A request without an end is cut off at its limit") {
  const RunningServer server(commands());
  const core::UniqueFd fd = raw_connection(server.socket());
  send_text(fd, std::string(100'000, 'x'));
  CHECK(error_code_of(next_line(fd)) == "bad_request");
  CHECK(next_line(fd).empty());
}

TEST_CASE("Neither one who says nothing nor one who does not listen keeps a place") {
  ControlServer::Options options;
  options.deadline = 200ms;
  options.connections = 2;
  RunningServer server(commands(), options);
  const core::UniqueFd silent = raw_connection(server.socket());
  const core::UniqueFd deaf = raw_connection(server.socket());
  send_text(deaf, "{\"command\":\"big\"}\n");
  server.turn();
  const auto full = control_call(server.socket(), {{"command", "echo"}}, 5s);
  REQUIRE_FALSE(full);
  CHECK(full.error().code() == core::ErrorCode::resource_exhausted);
  ::usleep(600'000);
  CHECK(control_call(server.socket(), {{"command", "echo"}}, 5s));
  CHECK(next_line(silent).empty());
}

TEST_CASE("A large answer arrives whole") {
  const RunningServer server(commands());
  const auto reply = control_call(server.socket(), {{"command", "big"}}, 10s);
  REQUIRE(reply);
  CHECK(reply->get_ref<const std::string&>().size() == 8U << 20);
}

TEST_CASE("Random bytes do not end the server") {
  const RunningServer server(commands());
  std::mt19937 random(11);  // the same bytes at every run
  for (int i = 0; i < 200; ++i) {
    const core::UniqueFd fd = raw_connection(server.socket());
    std::string bytes(random() % 300, '\0');
    for (char& c : bytes) c = static_cast<char>(random() % 4 == 0 ? '\n' : random() % 256);
    send_text(fd, bytes);
  }
  CHECK(control_call(server.socket(), {{"command", "echo"}}, 5s));
}

mode_t mode_of(const std::string& path) {
  struct stat info{};
  REQUIRE(::stat(path.c_str(), &info) == 0);
  return info.st_mode & 07777;
}

TEST_CASE("The socket is closed to others unless others are allowed") {
  {
    const RunningServer server(commands());
    CHECK(mode_of(server.socket()) == 0660);
    CHECK(mode_of(server.directory()) == 0750);
    CHECK(server.server().warnings().empty());
  }
  ControlServer::Options options;
  options.allow_users = {"root", "nobody", "no-such-user"};
  options.allow_groups = {"no-such-group"};
  const RunningServer server(commands(), options);
  CHECK(mode_of(server.socket()) == 0666);
  CHECK(mode_of(server.directory()) == 0755);
  CHECK(server.server().warnings() ==
        std::vector<std::string>{"control.allow_users: there is no user \"no-such-user\"",
                                 "control.allow_groups: there is no group \"no-such-group\""});
}

core::Result<std::unique_ptr<ControlServer>> listen_on(boost::asio::io_context& io, const std::string& socket,
                                                       std::vector<std::string> users = {}) {
  ControlServer::Options options;
  options.socket = socket;
  options.allow_users = std::move(users);
  return ControlServer::listen(io.get_executor(), options, commands());
}

TEST_CASE("A dead daemon's socket is taken over, a live one's is not") {
  const tests::TemporaryDirectory folder;
  const std::string path = folder.path() / "control.sock";
  boost::asio::io_context io;
  {
    // What a killed daemon leaves: a socket file that nobody listens on.
    const core::UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    REQUIRE(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  }
  auto first = listen_on(io, path);
  REQUIRE(first);
  const auto second = listen_on(io, path);
  REQUIRE_FALSE(second);
  CHECK(second.error().code() == core::ErrorCode::already_exists);
  CHECK(second.error().message() == "control socket: " + path + ": another daemon answers there");
  CHECK(std::filesystem::exists(path));
  first->reset();
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("Nothing but a socket is ever removed") {
  const tests::TemporaryDirectory folder;
  const std::string path = folder.path() / "control.sock";
  std::ofstream(path) << "precious";
  boost::asio::io_context io;
  const auto server = listen_on(io, path);
  REQUIRE_FALSE(server);
  CHECK(server.error().code() == core::ErrorCode::already_exists);
  CHECK(std::filesystem::file_size(path) == 8);
}

TEST_CASE("A directory that everybody may write to is refused, one that allowed users cannot enter is told") {
  const tests::TemporaryDirectory folder;
  boost::asio::io_context io;
  CHECK(::chmod(folder.path().c_str(), 0777) == 0);
  const auto open = listen_on(io, folder.path() / "a.sock");
  REQUIRE_FALSE(open);
  CHECK(open.error().code() == core::ErrorCode::permission_denied);
  CHECK(::chmod(folder.path().c_str(), 0750) == 0);
  const auto closed = listen_on(io, folder.path() / "a.sock", {"nobody"});
  REQUIRE(closed);
  CHECK((*closed)->warnings() == std::vector<std::string>{"control: allowed users cannot enter " +
                                                          folder.path().string() + ": make it 0755"});
}

TEST_CASE("A server that goes leaves its clients an end, not a hang") {
  auto server = std::make_unique<RunningServer>(commands());
  const core::UniqueFd fd = raw_connection(server->socket());
  server->turn();
  server.reset();
  CHECK(next_line(fd).empty());
}

TEST_CASE("The client says why there is no answer") {
  const tests::TemporaryDirectory folder;
  const std::string path = folder.path() / "control.sock";
  const auto code = [&](const std::string& socket) {
    return control_call(socket, {{"command", "echo"}}, 200ms).error().code();
  };
  CHECK(code(path) == core::ErrorCode::unavailable);
  CHECK(code(std::string(200, 'x')) == core::ErrorCode::invalid_argument);

  // One who accepts nothing, then one who answers something else.
  const core::UniqueFd other(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  REQUIRE(::bind(other.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  CHECK(code(path) == core::ErrorCode::unavailable);
  REQUIRE(::listen(other.get(), 8) == 0);
  const auto before = Clock::now();
  CHECK(code(path) == core::ErrorCode::deadline_exceeded);
  CHECK(Clock::now() - before < 5s);
  for (const char* answer : {"220 smtp ready\n", "[]\n", "{}\n", "{\"ok\":true}\n",
                             "{\"ok\":false,\"error\":3}\n", "{\"error\":{\"code\":[]}}\n"}) {
    INFO(answer);
    std::thread peer([&] {
      // Connections of the calls before may still be in the backlog.
      for (pollfd entry{other.get(), POLLIN, 0}; ::poll(&entry, 1, 100) == 1;) {
        const core::UniqueFd client(::accept(other.get(), nullptr, nullptr));
        send_text(client, answer);
        ::usleep(20'000);
      }
    });
    CHECK(code(path) == core::ErrorCode::corrupt);
    peer.join();
  }
}

}  // namespace
}  // namespace kvmscope::hostd
