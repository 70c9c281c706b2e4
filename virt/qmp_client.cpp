// SPDX-License-Identifier: Apache-2.0
#include "virt/qmp_client.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "hostd/core/unique_fd.h"

namespace kvmscope::virt {
namespace {

namespace asio = boost::asio;
using core::ErrorCode;
using nlohmann::json;
using Socket = asio::local::stream_protocol::socket;
using Clock = std::chrono::steady_clock;
using SystemError = boost::system::error_code;

/// Far from the end of what JSON's integers are sure to hold.
std::uint64_t random_id() {
  std::random_device source;
  return (std::uint64_t{source()} << 20) + 1;
}

core::Result<void> require_peer(int fd, const std::string& path, std::int32_t pid) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return core::fail(core::Error::from_errno(path));
  if (peer.pid == pid) return {};
  return core::fail(ErrorCode::permission_denied, path + ": process " + std::to_string(peer.pid) +
                                                      " listens there, not QEMU " + std::to_string(pid));
}

/// By hand: a full backlog is EAGAIN, and no connection will follow; Asio waits for it, and takes the socket
/// for connected then. It is what a third client of a QEMU gets, which listens with a backlog of 1. By way of
/// a descriptor: what stands at the path's end may be a link, to another's socket or to a file system that
/// hangs.
core::Result<core::UniqueFd> connect_to(const std::string& path) {
  const core::UniqueFd file(::open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!file) return core::fail(core::Error::from_errno(path));
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) return core::fail(core::Error::from_errno(path));
  if (!S_ISSOCK(status.st_mode)) return core::fail(ErrorCode::invalid_argument, path + " is no socket");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string there = "/proc/self/fd/" + std::to_string(file.get());
  std::memcpy(address.sun_path, there.data(), there.size());
  core::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return core::fail(core::Error::from_errno("socket"));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return fd;
  if (errno == EAGAIN) return core::fail(ErrorCode::unavailable, path + ": others wait there already");
  if (errno == ECONNREFUSED) return core::fail(ErrorCode::unavailable, path + ": nobody listens there");
  return core::fail(core::Error::from_errno(path));
}

core::Error error_of(const SystemError& error) {
  if (error == asio::error::eof || error == asio::error::connection_reset)
    return {ErrorCode::unavailable, "QEMU closed the connection"};
  return {ErrorCode::system, error.message()};
}

/// Classes are those of qapi/error.json.
core::Error error_of(const QmpFailure& failure) {
  ErrorCode code = ErrorCode::system;
  if (failure.error_class == "CommandNotFound" || failure.error_class == "KVMMissingCap")
    code = ErrorCode::unsupported;
  if (failure.error_class == "DeviceNotFound") code = ErrorCode::not_found;
  return {code, qmp_excerpt(failure.description)};
}

}  // namespace

/// Lives as long as an operation on its socket is pending.
class QmpClient::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(Options options, Events events, Socket socket)
      : options_(std::move(options)),
        events_(std::move(events)),
        decoder_(options_.limits),
        socket_(std::move(socket)),
        handshake_(options_.executor),
        timer_(options_.executor),
        budget_(options_.bytes_at_once),
        handshake_id_(options_.first_id.value_or(random_id())) {}

  void start() {
    handshake_.expires_after(options_.handshake_deadline);
    handshake_.async_wait([self = shared_from_this()](const SystemError& error) {
      if (!error) self->handshake_failed();
    });
    read();
  }

  void execute(const std::string& command, const json& arguments, Reply reply) {
    const auto refuse = [&](ErrorCode code, const char* why) {
      asio::post(options_.executor,
                 [self = shared_from_this(), reply = std::move(reply), error = core::Error(code, why)] {
                   if (!self->abandoned_) reply(core::fail(error));
                 });
    };
    if (state_ == State::closed) return refuse(ErrorCode::unavailable, "the connection has ended");
    if (!arguments.is_null() && !arguments.is_object())
      return refuse(ErrorCode::invalid_argument, "a command's arguments are an object");
    if (commands_.size() >= options_.open_commands)
      return refuse(ErrorCode::resource_exhausted, "too many open commands");
    std::string line = qmp_command(next_id_, command, arguments);
    if (unsent_bytes_ + line.size() > options_.unsent_bytes)
      return refuse(ErrorCode::resource_exhausted, "too much waits to be written");
    unsent_bytes_ += line.size();
    commands_.emplace(next_id_++,
                      Command{std::move(line), Clock::now() + options_.command_deadline, std::move(reply)});
    write_next();
    arm();
  }

  void abandon() {
    abandoned_ = true;
    shut();
  }

  std::uint64_t late_replies() const { return late_replies_; }

 private:
  enum class State { greeting, negotiating, ready, closed };

  struct Command {
    std::string line;  ///< empty once it is sent
    Clock::time_point deadline;
    Reply reply;  ///< empty once it was told that its deadline is over
  };

  // --- reading ---

  void read() {
    socket_.async_read_some(asio::buffer(chunk_),
                            [self = shared_from_this()](const SystemError& error, std::size_t size) {
                              self->on_read(error, size);
                            });
  }

  bool afford(std::size_t size) {
    const auto passed = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - refilled_);
    refilled_ += passed;
    const auto ms = std::min<std::uint64_t>(static_cast<std::uint64_t>(passed.count()), 3'600'000);
    budget_ =
        std::min<std::uint64_t>(budget_ + ms * options_.bytes_per_second / 1'000, options_.bytes_at_once);
    if (size > budget_) return false;
    budget_ -= size;
    return true;
  }

  void on_read(const SystemError& error, std::size_t size) {
    if (state_ == State::closed) return;
    if (error) return close(error_of(error));
    if (!afford(size)) return close({ErrorCode::resource_exhausted, "QEMU says more than it may"});
    decoder_.feed({chunk_.data(), size});
    while (state_ != State::closed) {
      auto message = decoder_.next();
      if (!message) return close(message.error());
      if (!*message) return read();
      std::visit([this](auto& one) { on_message(one); }, **message);
    }
  }

  void on_message(QmpGreeting& greeting) {
    if (state_ != State::greeting) return close({ErrorCode::corrupt, "a second greeting"});
    state_ = State::negotiating;
    greeting_ = std::move(greeting);
    write(qmp_command(handshake_id_, "qmp_capabilities", {}));
  }

  void on_message(QmpEvent& event) {
    if (state_ == State::greeting) return close({ErrorCode::corrupt, "an event before the greeting"});
    if (events_.on_event) events_.on_event(std::move(event));
  }

  void on_message(QmpReply& reply) {
    if (state_ == State::negotiating && reply.id == handshake_id_) return on_negotiated(reply);
    // QEMU answers the monitor, whoever is connected: what it was still at when a former client left.
    if (state_ == State::negotiating) {
      ++late_replies_;
      return;
    }
    const auto at = reply.id ? commands_.find(*reply.id) : commands_.end();
    if (at == commands_.end() || at->first >= first_unsent_) return close(unasked(reply));
    const Reply callback = std::move(at->second.reply);
    commands_.erase(at);
    if (!callback)
      ++late_replies_;
    else if (reply.result)
      callback(std::move(*reply.result));
    else
      callback(core::fail(error_of(reply.result.error())));
  }

  static core::Error unasked(const QmpReply& reply) {
    const std::string why = reply.result ? "" : ": " + qmp_excerpt(reply.result.error().description);
    return {ErrorCode::corrupt, "a reply to no command" + why};
  }

  void on_negotiated(const QmpReply& reply) {
    if (!reply.result) return close({ErrorCode::unsupported, error_of(reply.result.error()).message()});
    state_ = State::ready;
    handshake_.cancel();
    write_next();
    if (events_.on_ready) events_.on_ready(greeting_);
  }

  // --- writing ---

  void write_next() {
    const auto next = commands_.lower_bound(first_unsent_);
    if (state_ != State::ready || !writing_.empty() || next == commands_.end()) return;
    first_unsent_ = next->first + 1;
    unsent_bytes_ -= next->second.line.size();
    write(std::exchange(next->second.line, {}));
  }

  void write(std::string line) {
    writing_ = std::move(line);
    asio::async_write(
        socket_, asio::buffer(writing_),
        [self = shared_from_this()](const SystemError& error, std::size_t) { self->on_written(error); });
  }

  void on_written(const SystemError& error) {
    if (state_ == State::closed) return;
    // What QEMU said last is still to be read, and then its end. Nothing more is written.
    if (error == asio::error::broken_pipe || error == asio::error::connection_reset) {
      handshake_.expires_after(options_.command_deadline);
      handshake_.async_wait([self = shared_from_this()](const SystemError& cancelled) {
        if (!cancelled && self->state_ != State::closed)
          self->close({ErrorCode::unavailable, "QEMU reads no more"});
      });
      return;
    }
    if (error) return close(error_of(error));
    writing_.clear();
    write_next();
  }

  // --- deadlines ---

  void handshake_failed() {
    if (state_ == State::greeting)
      close({ErrorCode::deadline_exceeded, "no greeting: another client may be connected"});
    if (state_ == State::negotiating) close({ErrorCode::deadline_exceeded, "no reply to qmp_capabilities"});
  }

  /// For the first command that waits: deadlines are in the order of ids.
  void arm() {
    const auto next = std::ranges::find_if(commands_, [](const auto& one) { return !!one.second.reply; });
    if (armed_ || next == commands_.end()) return;
    armed_ = true;
    timer_.expires_at(next->second.deadline);
    timer_.async_wait([self = shared_from_this()](const SystemError& error) {
      self->armed_ = false;
      if (!error && self->state_ != State::closed) self->expire();
    });
  }

  void expire() {
    std::vector<Reply> late;
    for (auto at = commands_.begin(); at != commands_.end() && at->second.deadline <= Clock::now();) {
      if (at->second.reply) late.push_back(std::exchange(at->second.reply, nullptr));
      // One that was not sent never will be; the other's reply may still come.
      unsent_bytes_ -= at->second.line.size();
      at = at->first >= first_unsent_ ? commands_.erase(at) : std::next(at);
    }
    for (const Reply& reply : late)
      if (!abandoned_) reply(core::fail(ErrorCode::deadline_exceeded, "no reply in time"));
    if (state_ != State::closed) arm();
  }

  // --- the end ---

  void shut() {
    state_ = State::closed;
    SystemError ignored;
    ignored = socket_.close(ignored);
    handshake_.cancel();
    timer_.cancel();
  }

  /// Never called from a public function.
  void close(const core::Error& error) {
    shut();
    const auto commands = std::exchange(commands_, {});
    for (const auto& [id, command] : commands)
      if (command.reply && !abandoned_)
        command.reply(core::fail(ErrorCode::unavailable, "the connection has ended: " + error.message()));
    if (events_.on_closed && !abandoned_) events_.on_closed(error);
  }

  const Options options_;
  const Events events_;
  QmpDecoder decoder_;
  Socket socket_;
  asio::steady_timer handshake_;
  asio::steady_timer timer_;
  std::uint64_t budget_;  ///< bytes that QEMU may say now
  Clock::time_point refilled_ = Clock::now();
  bool armed_ = false;
  std::array<char, 16'384> chunk_;
  State state_ = State::greeting;
  bool abandoned_ = false;  ///< its owner has gone
  QmpGreeting greeting_;
  const std::uint64_t handshake_id_;
  std::map<std::uint64_t, Command> commands_;
  std::uint64_t next_id_ = handshake_id_ + 1;
  std::uint64_t first_unsent_ = handshake_id_ + 1;  ///< commands from this id on wait for their turn
  std::size_t unsent_bytes_ = 0;
  std::string writing_;
  std::uint64_t late_replies_ = 0;
};

core::Result<std::unique_ptr<QmpClient>> QmpClient::connect(Options options, Events events) {
  auto fd = connect_to(options.socket);
  if (!fd) return core::fail(fd.error());
  if (const auto peer = require_peer(fd->get(), options.socket, options.qemu_pid); !peer)
    return core::fail(peer.error());
  Socket socket(options.executor);
  SystemError error;
  if (socket.assign(asio::local::stream_protocol(), fd->get(), error))
    return core::fail(ErrorCode::system, options.socket + ": " + error.message());
  static_cast<void>(fd->release());
  auto impl = std::make_shared<Impl>(std::move(options), std::move(events), std::move(socket));
  impl->start();
  return std::unique_ptr<QmpClient>(new QmpClient(std::move(impl)));
}

QmpClient::QmpClient(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
QmpClient::~QmpClient() {
  impl_->abandon();
}

void QmpClient::execute(const std::string& command, const json& arguments, Reply reply) {
  impl_->execute(command, arguments, std::move(reply));
}

std::uint64_t QmpClient::late_replies() const {
  return impl_->late_replies();
}

}  // namespace kvmscope::virt
