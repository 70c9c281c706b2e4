// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "hostd/core/result.h"
#include "virt/qmp_wire.h"

namespace kvmscope::virt {

/// One connection to one QEMU by its machine protocol. It is not made anew when it ends: the owner decides.
///
/// For a monitor of our own (-qmp unix:PATH,server=on,wait=off), never libvirt's: a monitor has one client at
/// a time. A further one is accepted when the first has gone, and is not greeted until then.
///
/// Everything happens on the executor's thread, and nothing blocks. No callback is called from within a call
/// of this class, and none after its destruction, which may happen in any callback and is how to close.
class QmpClient {
 public:
  /// What the command returned, or: resource_exhausted, not sent, see Options. deadline_exceeded; it may be
  /// carried out all the same. unavailable: the connection has ended, on_closed says why; likewise.
  /// unsupported: this QEMU has no such command. not_found: no such device. invalid_argument: the arguments
  /// are no object. system: any other failure; the message says QEMU's reason.
  using Reply = std::function<void(core::Result<nlohmann::json>)>;

  struct Options {
    boost::asio::any_io_executor executor;
    std::string socket;  ///< path
    /// Who has to listen there: in the hands of a guest that broke out the path may lead to another's socket.
    std::int32_t qemu_pid = 0;
    /// From connect() to the end of the negotiation.
    std::chrono::milliseconds handshake_deadline{5'000};
    /// For each command, counted from execute().
    std::chrono::milliseconds command_deadline{5'000};
    /// Commands without a reply. One past its deadline counts until QEMU answers it, unless it was not sent:
    /// a QEMU that hangs is asked this many things, then no more.
    std::size_t open_commands = 64;
    /// Bytes of the commands that wait for their turn to be written.
    std::size_t unsent_bytes = std::size_t{1} << 20;
    /// What QEMU may say in the long run, and at once beside that; beyond it the connection ends. (Left
    /// unread, it would be kept in QEMU's memory without bound.)
    std::size_t bytes_per_second = std::size_t{1} << 20;
    std::size_t bytes_at_once = std::size_t{16} << 20;
    QmpLimits limits;
    /// The negotiation's id; those of the commands follow. Empty: a random one, so that no reply to a former
    /// client is taken for one to us.
    std::optional<std::uint64_t> first_id;
  };

  /// Each may be empty.
  struct Events {
    /// Once: commands are sent from now on.
    std::function<void(const QmpGreeting&)> on_ready;
    /// As they come, in order with the replies; the first may come before on_ready.
    std::function<void(QmpEvent)> on_event;
    /// Once, after every open command has ended with the same error. unavailable: QEMU closed it, and likely
    /// ended. deadline_exceeded: no greeting, or no end of the negotiation. corrupt: this is no QMP, or a
    /// reply is to none of our commands. unsupported: QEMU refused the negotiation. resource_exhausted: it
    /// says more than it may.
    std::function<void(core::Error)> on_closed;
  };

  /// not_found. invalid_argument: no path, or of no socket (a symbolic link is none). permission_denied: the
  /// system's word, or another process listens than qemu_pid. unavailable: nobody listens, or others wait
  /// there already.
  static core::Result<std::unique_ptr<QmpClient>> connect(Options options, Events events);
  ~QmpClient();
  QmpClient(const QmpClient&) = delete;
  QmpClient& operator=(const QmpClient&) = delete;

  /// Sent when the negotiation is done. `arguments` is an object or null; what is no UTF-8 in them is
  /// replaced. `reply` must not be empty, and is called exactly once unless this object is destroyed before.
  void execute(const std::string& command, const nlohmann::json& arguments, Reply reply);

  /// Replies that came after their command's deadline, or to a former client, and were dropped.
  std::uint64_t late_replies() const;

 private:
  class Impl;
  explicit QmpClient(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvmscope::virt
