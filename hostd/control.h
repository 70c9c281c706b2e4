// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "hostd/core/result.h"

namespace kvmscope::hostd {

/// Answers one command. Called on the executor's thread; must not block. The request is the client's whole
/// object.
using ControlHandler = std::function<nlohmann::json(const nlohmann::json& request)>;

/// The daemon's Unix socket. One request per line, one reply per line, both JSON objects:
///   {"command": "vms"}  ->  {"ok": true, "result": ...}  or  {"ok": false, "error": {"code": "...",
///   "message": "..."}}
/// Codes: permission_denied (the connection is closed then), bad_request, unknown_command, busy, internal.
///
/// Peers are known by SO_PEERCRED and SO_PEERGROUPS: root, the daemon's own user, allow_users, and whoever is
/// in one of allow_groups by primary or supplementary group. The socket's mode is 0660 as long as only root
/// and the daemon's user are allowed; else 0666, for the check of the peer is what decides then. A missing
/// directory is made, 0750 (0755); an existing one is left as it is.
///
/// A client can send what it likes and as slowly as it likes: it costs at most `request_bytes` and one of
/// `connections` places, until its deadline.
///
/// Threads: everything happens on the executor's thread.
class ControlServer {
 public:
  struct Options {
    std::string socket;
    std::vector<std::string> allow_users;
    std::vector<std::string> allow_groups;
    std::size_t request_bytes = 65'536;
    std::size_t connections = 32;
    /// For each of: a request to arrive, a reply to be taken.
    std::chrono::milliseconds deadline{10'000};
  };

  /// Makes the socket. A stale one is removed, one that somebody answers on is not (already_exists).
  static core::Result<std::unique_ptr<ControlServer>> listen(boost::asio::any_io_executor executor,
                                                             Options options,
                                                             std::map<std::string, ControlHandler> commands);
  /// Closes all connections and removes the socket.
  ~ControlServer();

  /// What will surprise the operator, one line each: names that do not exist, a directory that keeps allowed
  /// users out.
  const std::vector<std::string>& warnings() const;

 private:
  class Impl;
  explicit ControlServer(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvmscope::hostd
