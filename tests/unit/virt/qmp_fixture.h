// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hostd/core/unique_fd.h"
#include "tests/unit/virt/tree.h"
#include "virt/qmp_client.h"

namespace kvmscope::virt {

inline const char* name_of(core::ErrorCode code) {
  using enum core::ErrorCode;
  if (code == invalid_argument) return "invalid_argument";
  if (code == not_found) return "not_found";
  if (code == unsupported) return "unsupported";
  if (code == resource_exhausted) return "resource_exhausted";
  if (code == unavailable) return "unavailable";
  if (code == deadline_exceeded) return "deadline_exceeded";
  if (code == corrupt) return "corrupt";
  return "another";
}

/// The other end of a monitor's socket, without a thread and without a mind: the test plays it step by step.
class FakeMonitor {
 public:
  explicit FakeMonitor(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    REQUIRE(path.size() < sizeof(address.sun_path));
    std::memcpy(address.sun_path, path.data(), path.size());
    REQUIRE(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    REQUIRE(::listen(listener_.get(), 1) == 0);
  }

  void accept() {
    fd_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    REQUIRE(fd_);
  }
  /// False if nobody is there to read it.
  bool send(std::string_view text) const {
    const ssize_t sent = ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
    if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) return false;
    REQUIRE(sent == static_cast<ssize_t>(text.size()));
    return true;
  }
  /// What has come, at most that much.
  std::string take(std::size_t size = std::string::npos) const {
    std::string text;
    std::array<char, 65'536> chunk;
    for (ssize_t got = 1; got > 0 && text.size() < size;) {
      got = ::recv(fd_.get(), chunk.data(), std::min(chunk.size(), size - text.size()), 0);
      if (got > 0) text.append(chunk.data(), static_cast<std::size_t>(got));
    }
    return text;
  }
  /// A client is there that was not accepted.
  bool waiting() const {
    pollfd listener{listener_.get(), POLLIN, 0};
    return ::poll(&listener, 1, 0) == 1;
  }
  /// The client has closed, and nothing of it is left to be read.
  bool ended() const {
    char byte = 0;
    return ::recv(fd_.get(), &byte, 1, MSG_PEEK) == 0;
  }
  void close() { fd_.reset(); }
  void shut_reading() const { REQUIRE(::shutdown(fd_.get(), SHUT_RD) == 0); }
  void stop_listening() { listener_.reset(); }

 private:
  core::UniqueFd listener_{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  core::UniqueFd fd_;
};

using Seen = std::vector<std::string>;

/// A client, and all that it said, in order.
struct QmpFixture {
  QmpFixture() = default;
  QmpFixture(const QmpFixture&) = delete;
  QmpFixture& operator=(const QmpFixture&) = delete;
  ~QmpFixture() {
    destroy();
    settle();
  }

  core::Result<void> connect() {
    inside = true;
    auto made = QmpClient::connect(options, {[this](const QmpGreeting& greeting) {
                                               note("ready " + std::to_string(greeting.version[0]));
                                             },
                                             [this](const QmpEvent& event) { note("event " + event.name); },
                                             [this](const core::Error& error) {
                                               message = error.message();
                                               note(std::string("closed: ") + name_of(error.code()));
                                             }});
    inside = false;
    if (!made) return core::fail(made.error());
    client = std::move(*made);
    return {};
  }

  void execute(const std::string& command, const nlohmann::json& arguments = {}) {
    if (!client) return;
    inside = true;
    client->execute(command, arguments, [this, command](core::Result<nlohmann::json> returned) {
      if (!returned) message = returned.error().message();
      note(command +
           (returned ? " = " + returned->dump() : std::string(": ") + name_of(returned.error().code())));
      if (returned) value = std::move(*returned);
    });
    inside = false;
  }

  void destroy() {
    inside = true;
    client.reset();
    inside = false;
  }

  void note(std::string what) {
    CHECK_FALSE(inside);
    seen.push_back(std::move(what));
    if (seen.back() == destroy_at) destroy();
    if (seen.back() == execute_at) execute("more");
  }

  /// All that can be done at once.
  void settle() {
    loop.restart();
    while (loop.poll() > 0) loop.restart();
  }
  /// Until that much was said.
  void wait(std::size_t count) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (seen.size() < count && std::chrono::steady_clock::now() < until) {
      loop.restart();
      loop.run_one_for(std::chrono::milliseconds(100));
    }
    CAPTURE(seen);
    REQUIRE(seen.size() >= count);
  }
  Seen told() { return std::exchange(seen, {}); }

  boost::asio::io_context loop;
  TempTree tree;
  // The test says when time is over.
  QmpClient::Options options{.executor = loop.get_executor(),
                             .socket = tree.path("qmp"),
                             .qemu_pid = ::getpid(),
                             .handshake_deadline = std::chrono::hours(1),
                             .command_deadline = std::chrono::hours(1),
                             .first_id = 0};
  Seen seen;
  std::string message;   ///< of the last error
  nlohmann::json value;  ///< last returned
  bool inside = false;   ///< a call of the client
  std::string destroy_at;
  std::string execute_at;
  std::unique_ptr<QmpClient> client;
};

// What QEMU says, and what it is told.
inline const std::string kGreeting =
    R"({"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}})"
    "\r\n";
inline const std::string kNegotiate = "{\"execute\":\"qmp_capabilities\",\"id\":0}\n";

inline std::string reply(std::uint64_t id, const std::string& value = "{}") {
  return "{\"return\": " + value + ", \"id\": " + std::to_string(id) + "}\r\n";
}
inline std::string failure(const std::string& id, const std::string& error_class = "GenericError") {
  return "{" + id + "\"error\": {\"class\": \"" + error_class + "\", \"desc\": \"it \\u001b broke\"}}\r\n";
}
inline std::string event(const std::string& name) {
  return "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"" + name + "\"}\r\n";
}
inline std::string command(std::uint64_t id, const std::string& name) {
  return "{\"execute\":\"" + name + "\",\"id\":" + std::to_string(id) + "}\n";
}

/// With a monitor that the test plays.
struct PlayedFixture : QmpFixture {
  void start() {
    REQUIRE(connect());
    monitor.accept();
  }
  bool say(const std::string& text) {
    const bool heard = monitor.send(text);
    settle();
    return heard;
  }
  void negotiate() {
    say(kGreeting);
    CHECK(monitor.take() == kNegotiate);
    say(reply(0));
  }
  void ready() {
    start();
    negotiate();
    CHECK(told() == Seen{"ready 7"});
  }

  FakeMonitor monitor{options.socket};
};

}  // namespace kvmscope::virt
