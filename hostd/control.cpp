// SPDX-License-Identifier: Apache-2.0
#include "hostd/control.h"

#include <fmt/format.h>
#include <grp.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <cstring>
#include <exception>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>
#include <utility>

#include "hostd/core/unique_fd.h"
#include "hostd/views.h"

namespace kvmscope::hostd {
namespace {

namespace asio = boost::asio;
using Socket = asio::local::stream_protocol::socket;
using nlohmann::json;

/// Whose requests are answered, by number: names are looked up once.
struct Allowed {
  std::set<uid_t> users;
  std::set<gid_t> groups;
};

Allowed resolve(const ControlServer::Options& options, std::vector<std::string>& warnings) {
  Allowed allowed{{0, ::geteuid()}, {}};
  for (const std::string& name : options.allow_users) {
    if (const passwd* user = ::getpwnam(name.c_str()))
      allowed.users.insert(user->pw_uid);
    else
      warnings.push_back(fmt::format("control.allow_users: there is no user \"{}\"", name));
  }
  for (const std::string& name : options.allow_groups) {
    if (const group* found = ::getgrnam(name.c_str()))
      allowed.groups.insert(found->gr_gid);
    else
      warnings.push_back(fmt::format("control.allow_groups: there is no group \"{}\"", name));
  }
  return allowed;
}

bool only_us(const Allowed& allowed) {
  return allowed.groups.empty() &&
         std::ranges::all_of(allowed.users, [](uid_t uid) { return uid == 0 || uid == ::geteuid(); });
}

bool is_allowed(int fd, const Allowed& allowed) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return false;
  if (allowed.users.contains(peer.uid) || allowed.groups.contains(peer.gid)) return true;
  // Supplementary groups as they were at connect: asking the name service here could block the loop.
  std::vector<gid_t> groups(64);
  size = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size) != 0) {
    if (errno != ERANGE) return false;
    groups.resize(size / sizeof(gid_t));
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size) != 0) return false;
  }
  groups.resize(size / sizeof(gid_t));
  return std::ranges::any_of(groups, [&](gid_t gid) { return allowed.groups.contains(gid); });
}

core::Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path))
    return core::fail(core::ErrorCode::invalid_argument, fmt::format("{}: longer than 107 bytes", path));
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

int bind_to(int fd, const sockaddr_un& address) {
  return ::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
}

core::Result<core::UniqueFd> new_socket() {
  core::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return core::fail(core::Error::from_errno("socket"));
  return fd;
}

/// Removes what a daemon that died has left; never anything else.
core::Result<void> remove_stale(const std::string& path, const sockaddr_un& address) {
  struct stat info{};
  if (::lstat(path.c_str(), &info) != 0) return core::fail(core::Error::from_errno(path));
  if (!S_ISSOCK(info.st_mode))
    return core::fail(core::ErrorCode::already_exists, fmt::format("{}: exists and is no socket", path));
  auto probe = new_socket();
  if (!probe) return core::fail(probe.error());
  // A full backlog (EAGAIN) is somebody too.
  if (::connect(probe->get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 ||
      errno != ECONNREFUSED)
    return core::fail(core::ErrorCode::already_exists, fmt::format("{}: another daemon answers there", path));
  if (::unlink(path.c_str()) != 0) return core::fail(core::Error::from_errno(path));
  return {};
}

/// Makes the directory if it is missing; refuses one in which others could put a socket of theirs in our
/// place.
core::Result<void> prepare_directory(const std::string& socket, bool open_to_others,
                                     std::vector<std::string>& warnings) {
  const std::string directory = socket.substr(0, std::max<std::size_t>(1, socket.rfind('/')));
  const mode_t mode = open_to_others ? 0755 : 0750;
  if (::mkdir(directory.c_str(), mode) == 0) {
    if (::chmod(directory.c_str(), mode) != 0) return core::fail(core::Error::from_errno(directory));
  } else if (errno != EEXIST) {
    return core::fail(core::Error::from_errno(directory));
  }
  struct stat info{};
  if (::stat(directory.c_str(), &info) != 0) return core::fail(core::Error::from_errno(directory));
  if ((info.st_mode & S_IWOTH) != 0 && (info.st_mode & S_ISVTX) == 0)
    return core::fail(core::ErrorCode::permission_denied,
                      fmt::format("{}: is writable by everybody", directory));
  if (open_to_others && (info.st_mode & S_IXOTH) == 0)
    warnings.push_back(fmt::format("control: allowed users cannot enter {}: make it 0755", directory));
  return {};
}

json failure(std::string_view code, std::string_view message) {
  return {{"ok", false}, {"error", {{"code", code}, {"message", message}}}};
}

json answer(const std::string& line, const std::map<std::string, ControlHandler>& commands) {
  const json request = json::parse(line, nullptr, false);
  if (!request.is_object()) return failure("bad_request", "a request is one line with a JSON object");
  const auto command = request.find("command");
  if (command == request.end() || !command->is_string())
    return failure("bad_request", "a request has a \"command\", a string");
  const auto handler = commands.find(command->get_ref<const std::string&>());
  if (handler == commands.end()) return failure("unknown_command", "this daemon does not know that command");
  try {
    return {{"ok", true}, {"result", handler->second(request)}};
  } catch (const json::exception&) {
    return failure("bad_request", "a field of the request has the wrong type");
  } catch (const std::exception& error) {
    // Whatever a client can provoke must not end the daemon.
    return failure("internal", error.what());
  }
}

/// One client. Lives as long as an operation on its socket is pending.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(Socket socket, const ControlServer::Options& options,
          std::shared_ptr<const std::map<std::string, ControlHandler>> commands,
          std::function<void(Session*)> on_end)
      : socket_(std::move(socket)),
        timer_(socket_.get_executor()),
        request_bytes_(options.request_bytes),
        deadline_(options.deadline),
        commands_(std::move(commands)),
        on_end_(std::move(on_end)) {}

  void read() {
    arm();
    asio::async_read_until(socket_, asio::dynamic_buffer(buffer_, request_bytes_), '\n',
                           [self = shared_from_this()](const boost::system::error_code& error,
                                                       std::size_t length) { self->on_read(error, length); });
  }

  void close() {
    boost::system::error_code ignored;
    timer_.cancel();
    socket_.close(ignored);
    if (auto on_end = std::exchange(on_end_, nullptr)) on_end(this);
  }

 private:
  void on_read(const boost::system::error_code& error, std::size_t length) {
    if (error == asio::error::not_found)
      return write(failure("bad_request", fmt::format("a request is at most {} bytes", request_bytes_)),
                   true);
    if (error) return close();
    const std::string line = buffer_.substr(0, length);
    buffer_.erase(0, length);
    write(answer(line, *commands_), false);
  }

  void write(const json& reply, bool last) {
    arm();
    reply_ = to_line(reply);
    reply_ += '\n';
    asio::async_write(socket_, asio::buffer(reply_),
                      [self = shared_from_this(), last](const boost::system::error_code& error, std::size_t) {
                        if (error || last) return self->close();
                        self->reply_ = {};
                        self->read();
                      });
  }

  void arm() {
    timer_.expires_after(deadline_);
    timer_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
      const auto self = weak.lock();
      if (!error && self) self->close();
    });
  }

  Socket socket_;
  asio::steady_timer timer_;
  std::size_t request_bytes_;
  std::chrono::milliseconds deadline_;
  std::shared_ptr<const std::map<std::string, ControlHandler>> commands_;
  std::function<void(Session*)> on_end_;
  std::string buffer_;
  std::string reply_;
};

}  // namespace

class ControlServer::Impl : public std::enable_shared_from_this<Impl> {
 public:
  Impl(asio::any_io_executor executor, Options options, std::map<std::string, ControlHandler> commands)
      : options_(std::move(options)),
        commands_(std::make_shared<const std::map<std::string, ControlHandler>>(std::move(commands))),
        acceptor_(executor),
        retry_(executor) {}

  core::Result<void> open() {
    allowed_ = resolve(options_, warnings_);
    const bool open_to_others = !only_us(allowed_);
    if (auto done = prepare_directory(options_.socket, open_to_others, warnings_); !done) return done;
    const auto address = address_of(options_.socket);
    if (!address) return core::fail(address.error());
    auto fd = new_socket();
    if (!fd) return core::fail(fd.error());
    if (bind_to(fd->get(), *address) != 0) {
      if (errno != EADDRINUSE) return core::fail(core::Error::from_errno(options_.socket));
      if (auto removed = remove_stale(options_.socket, *address); !removed) return removed;
      if (bind_to(fd->get(), *address) != 0) return core::fail(core::Error::from_errno(options_.socket));
    }
    // Nobody can connect before listen(): the mode is right by then.
    struct stat info{};
    if (::chmod(options_.socket.c_str(), open_to_others ? 0666 : 0660) != 0 ||
        ::stat(options_.socket.c_str(), &info) != 0)
      return core::fail(core::Error::from_errno(options_.socket));
    device_ = info.st_dev;
    inode_ = info.st_ino;
    if (::listen(fd->get(), 64) != 0) return core::fail(core::Error::from_errno("listen"));
    boost::system::error_code error;
    acceptor_.assign(asio::local::stream_protocol(), fd->get(), error);
    if (error) return core::fail(core::ErrorCode::system, options_.socket + ": " + error.message());
    static_cast<void>(fd->release());
    accept();
    return {};
  }

  void close() {
    boost::system::error_code ignored;
    acceptor_.close(ignored);
    retry_.cancel();
    const auto sessions = sessions_;
    for (const auto& [key, weak] : sessions)
      if (const auto session = weak.lock()) session->close();
    struct stat info{};
    // Only ours: another daemon may have replaced it.
    if (inode_ != 0 && ::stat(options_.socket.c_str(), &info) == 0 && info.st_ino == inode_ &&
        info.st_dev == device_)
      ::unlink(options_.socket.c_str());
  }

  const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  void accept() {
    acceptor_.async_accept([weak = weak_from_this()](const boost::system::error_code& error, Socket socket) {
      const auto self = weak.lock();
      if (!self || error == asio::error::operation_aborted) return;
      if (error) return self->accept_later();
      self->start(std::move(socket));
      self->accept();
    });
  }

  /// Out of file descriptors: the connection stays in the backlog, asking again at once would spin.
  void accept_later() {
    retry_.expires_after(std::chrono::milliseconds(100));
    retry_.async_wait([weak = weak_from_this()](const boost::system::error_code& error) {
      const auto self = weak.lock();
      if (!error && self) self->accept();
    });
  }

  void start(Socket socket) {
    if (!is_allowed(socket.native_handle(), allowed_))
      return refuse(socket, failure("permission_denied", "this user may not control the daemon"));
    if (sessions_.size() >= options_.connections)
      return refuse(socket, failure("busy", "too many connections"));
    auto session = std::make_shared<Session>(std::move(socket), options_, commands_,
                                             [weak = weak_from_this()](Session* ended) {
                                               if (const auto self = weak.lock())
                                                 self->sessions_.erase(ended);
                                             });
    sessions_.emplace(session.get(), session);
    session->read();
  }

  /// Takes no place and no time: so short a line always fits into a fresh socket's buffer.
  static void refuse(Socket& socket, const json& reply) {
    boost::system::error_code ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(asio::buffer(to_line(reply) + "\n"), ignored);
  }

  Options options_;
  std::shared_ptr<const std::map<std::string, ControlHandler>> commands_;
  std::vector<std::string> warnings_;
  Allowed allowed_;
  asio::local::stream_protocol::acceptor acceptor_;
  asio::steady_timer retry_;
  std::map<Session*, std::weak_ptr<Session>> sessions_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

core::Result<std::unique_ptr<ControlServer>> ControlServer::listen(
    asio::any_io_executor executor, Options options, std::map<std::string, ControlHandler> commands) {
  auto impl = std::make_shared<Impl>(std::move(executor), std::move(options), std::move(commands));
  if (auto opened = impl->open(); !opened) return core::fail(opened.error().wrap("control socket"));
  return std::unique_ptr<ControlServer>(new ControlServer(std::move(impl)));
}

ControlServer::ControlServer(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
ControlServer::~ControlServer() {
  impl_->close();
}
const std::vector<std::string>& ControlServer::warnings() const {
  return impl_->warnings();
}

}  // namespace kvmscope::hostd
