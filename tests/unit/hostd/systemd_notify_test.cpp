// SPDX-License-Identifier: Apache-2.0
#include "hostd/systemd_notify.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>

#include "hostd/core/unique_fd.h"
#include "tests/support/catch.h"
#include "tests/unit/hostd/temporary_directory.h"

namespace kvmscope::hostd {
namespace {

/// What systemd would be at the other end of NOTIFY_SOCKET.
class Manager {
 public:
  Manager() : socket_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    const std::string path = folder_.path() / "notify";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
    REQUIRE(::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    ::setenv("NOTIFY_SOCKET", path.c_str(), 1);
  }
  ~Manager() { ::unsetenv("NOTIFY_SOCKET"); }

  std::string received() const {
    std::array<char, 1024> message{};
    const ssize_t size = ::recv(socket_.get(), message.data(), message.size(), 0);
    return size < 0 ? std::string("nothing") : std::string(message.data(), static_cast<std::size_t>(size));
  }

 private:
  tests::TemporaryDirectory folder_;
  core::UniqueFd socket_;
};

TEST_CASE("systemd is told") {
  const Manager manager;
  systemd::notify_ready("3 VMs");
  CHECK(manager.received() == "READY=1\nSTATUS=3 VMs");
  systemd::notify_status("a\nMAINPID=1");
  CHECK(manager.received() == "STATUS=a MAINPID=1");
  systemd::notify_watchdog();
  CHECK(manager.received() == "WATCHDOG=1");
  systemd::notify_stopping();
  CHECK(manager.received() == "STOPPING=1");
}

TEST_CASE("Without systemd nothing happens") {
  ::unsetenv("NOTIFY_SOCKET");
  systemd::notify_ready("up");
  CHECK_FALSE(systemd::watchdog_timeout());
}

TEST_CASE("The watchdog's timeout is the one for this process") {
  ::setenv("WATCHDOG_USEC", "30000000", 1);
  ::setenv("WATCHDOG_PID", std::to_string(::getpid()).c_str(), 1);
  CHECK(systemd::watchdog_timeout() == std::chrono::seconds(30));
  ::setenv("WATCHDOG_PID", "1", 1);
  CHECK_FALSE(systemd::watchdog_timeout());
  ::unsetenv("WATCHDOG_USEC");
  ::unsetenv("WATCHDOG_PID");
}

}  // namespace
}  // namespace kvmscope::hostd
