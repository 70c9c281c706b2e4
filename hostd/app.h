// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "hostd/config.h"
#include "hostd/core/result.h"

namespace kvmscope::hostd {

/// The daemon: the only place where the rooms meet.
class App {
 public:
  /// Loads and attaches the programs, opens the control socket, starts looking for domains. Errors say what
  /// is missing on this host and what helps.
  static core::Result<std::unique_ptr<App>> start(Config config);
  ~App();

  /// Runs until SIGTERM, SIGINT or SIGHUP; then reads and sends the last interval. Returns the process's exit
  /// code.
  int run();

 private:
  struct Impl;
  explicit App(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvmscope::hostd
