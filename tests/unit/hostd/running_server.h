// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <filesystem>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "hostd/control.h"
#include "tests/support/catch.h"
#include "tests/unit/hostd/temporary_directory.h"

namespace kvmscope::tests {

/// A control server with a loop and a thread of its own, on a socket in a directory of its own.
class RunningServer {
 public:
  explicit RunningServer(std::map<std::string, hostd::ControlHandler> commands,
                         hostd::ControlServer::Options options = {})
      : work_(boost::asio::make_work_guard(io_)) {
    options.socket = socket();
    // Other users must get as far as the server's own directory.
    std::filesystem::permissions(folder_.path(), std::filesystem::perms(0755));
    auto server = hostd::ControlServer::listen(io_.get_executor(), std::move(options), std::move(commands));
    INFO((server ? std::string() : server.error().message()));
    REQUIRE(server);
    server_ = std::move(*server);
    thread_ = std::thread([this] { io_.run(); });
  }
  RunningServer(const RunningServer&) = delete;
  RunningServer& operator=(const RunningServer&) = delete;
  ~RunningServer() {
    boost::asio::post(io_, [this] {
      server_.reset();
      work_.reset();
    });
    thread_.join();
  }

  std::string directory() const { return folder_.path() / "run"; }
  std::string socket() const { return directory() + "/control.sock"; }
  const hostd::ControlServer& server() const { return *server_; }

  /// Runs something on the loop's thread and waits for it: the loop is alive.
  void turn() {
    std::promise<void> done;
    boost::asio::post(io_, [&] { done.set_value(); });
    REQUIRE(done.get_future().wait_for(std::chrono::seconds(10)) == std::future_status::ready);
  }

 private:
  TemporaryDirectory folder_;
  boost::asio::io_context io_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_;
  std::unique_ptr<hostd::ControlServer> server_;
  std::thread thread_;
};

}  // namespace kvmscope::tests
