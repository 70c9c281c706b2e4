// SPDX-License-Identifier: Apache-2.0
#include "hostd/control_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "hostd/core/unique_fd.h"
#include "hostd/views.h"

namespace kvmscope::hostd {
namespace {

using core::ErrorCode;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kMaxReply = std::size_t{256} << 20;

core::Result<void> wait_for(int fd, short events, Clock::time_point deadline) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd entry{fd, events, 0};
    const int ready =
        left <= 0 ? 0 : ::poll(&entry, 1, static_cast<int>(std::min<std::int64_t>(left, 60'000)));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return core::fail(core::Error::from_errno("poll"));
    if (left <= 0) return core::fail(ErrorCode::deadline_exceeded, "no answer in time");
  }
}

core::Result<core::UniqueFd> connect_to(const std::string& path, Clock::time_point deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path))
    return core::fail(ErrorCode::invalid_argument, "the path is too long for a socket");
  std::memcpy(address.sun_path, path.data(), path.size());
  core::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return core::fail(core::Error::from_errno("socket"));
  while (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    if (errno == ENOENT || errno == ECONNREFUSED)
      return core::fail(ErrorCode::unavailable, std::strerror(errno));
    if (errno != EAGAIN && errno != EINTR) return core::fail(core::Error::from_errno("connect"));
    // The backlog is full; a Unix socket cannot be polled for room in it.
    if (Clock::now() >= deadline) return core::fail(ErrorCode::deadline_exceeded, "no answer in time");
    ::poll(nullptr, 0, 20);
  }
  return fd;
}

core::Result<void> send_all(int fd, std::string_view bytes, Clock::time_point deadline) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(sent));
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return {};  // closed before it was asked: the refusal is there to be read
    } else if (errno == EAGAIN) {
      if (auto ready = wait_for(fd, POLLOUT, deadline); !ready) return ready;
    } else if (errno != EINTR) {
      return core::fail(core::Error::from_errno("send"));
    }
  }
  return {};
}

core::Result<std::string> read_line(int fd, Clock::time_point deadline) {
  std::string line;
  std::array<char, 65'536> chunk{};
  while (true) {
    const ssize_t got = ::recv(fd, chunk.data(), chunk.size(), 0);
    if (got > 0) {
      const std::string_view fresh(chunk.data(), static_cast<std::size_t>(got));
      const std::size_t end = fresh.find('\n');
      line += fresh.substr(0, end);
      if (end != std::string_view::npos) return line;
      if (line.size() > kMaxReply) return core::fail(ErrorCode::corrupt, "the reply is longer than 256 MiB");
    } else if (got == 0 || errno == ECONNRESET) {
      return core::fail(ErrorCode::unavailable, "the daemon closed the connection");
    } else if (errno == EAGAIN) {
      if (auto ready = wait_for(fd, POLLIN, deadline); !ready) return core::fail(ready.error());
    } else if (errno != EINTR) {
      return core::fail(core::Error::from_errno("recv"));
    }
  }
}

ErrorCode code_of(std::string_view name) {
  if (name == "permission_denied") return ErrorCode::permission_denied;
  if (name == "bad_request") return ErrorCode::invalid_argument;
  if (name == "unknown_command") return ErrorCode::unsupported;
  if (name == "busy") return ErrorCode::resource_exhausted;
  return ErrorCode::system;
}

core::Result<nlohmann::json> result_of(const std::string& line) {
  nlohmann::json reply = nlohmann::json::parse(line, nullptr, false);
  if (reply.is_object() && reply.value("ok", nlohmann::json()) == true && reply.contains("result"))
    return std::move(reply["result"]);
  const auto text = [&](const char* field) {
    const nlohmann::json value =
        reply.value(nlohmann::json::json_pointer(std::string("/error/") + field), nlohmann::json());
    return value.is_string() ? value.get<std::string>() : std::string();
  };
  if (!reply.is_object() || text("code").empty())
    return core::fail(ErrorCode::corrupt, "what answers there is not kvmscope-hostd");
  return core::fail(code_of(text("code")), text("message"));
}

}  // namespace

core::Result<nlohmann::json> control_call(const std::string& socket, const nlohmann::json& request,
                                          std::chrono::milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  const auto fd = connect_to(socket, deadline);
  if (!fd) return core::fail(fd.error());
  if (auto sent = send_all(fd->get(), to_line(request) + "\n", deadline); !sent)
    return core::fail(sent.error());
  const auto line = read_line(fd->get(), deadline);
  if (!line) return core::fail(line.error());
  return result_of(*line);
}

}  // namespace kvmscope::hostd
