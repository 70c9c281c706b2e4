// SPDX-License-Identifier: Apache-2.0
#include <sys/prctl.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <string>

#include "hostd/app.h"
#include "hostd/config.h"
#include "hostd/host_id.h"
#include "hostd/logging.h"

namespace kvmscope::hostd {
namespace {

constexpr int kExitBadConfig = 2;
constexpr int kExitCannotStart = 3;

/// Tokens pass through this process's memory: neither a core file nor another user's debugger shall hold
/// them.
void forbid_core_dumps() {
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
  prctl(PR_SET_DUMPABLE, 0);
}

int run(int argc, char** argv) {
  CLI::App cli{
      "kvmscope-hostd: traces the VMs of this host and exports each tenant's data on its own stream"};
  std::string config_file = "/etc/kvmscope/kvmscope.yaml";
  bool check_only = false;
  cli.add_option("--config", config_file, "configuration file")->capture_default_str();
  cli.add_flag("--check-config", check_only, "check the configuration file and exit");
  cli.set_version_flag("--version", std::string("kvmscope-hostd ") + KVMSCOPE_VERSION);
  CLI11_PARSE(cli, argc, argv);

  ConfigResult config = load_config(config_file);
  if (!config) {
    for (const ConfigError& error : config.error()) std::fprintf(stderr, "%s\n", to_string(error).c_str());
    return kExitBadConfig;
  }
  if (check_only) {
    std::printf("%s: ok\n", config_file.c_str());
    return 0;
  }
  if (config->host.id.empty()) config->host.id = default_host_id();
  forbid_core_dumps();
  // Whoever reads our log or our replies may go away in the middle: that is an error of write(), not our end.
  std::signal(SIGPIPE, SIG_IGN);
  init_logging(config->log);
  auto app = App::start(std::move(*config));
  if (!app) {
    log_event(LogLevel::error, "cannot start", {{"error", app.error().message()}});
    return kExitCannotStart;
  }
  return (*app)->run();
}

}  // namespace
}  // namespace kvmscope::hostd

int main(int argc, char** argv) {
  try {
    return kvmscope::hostd::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kvmscope-hostd: %s\n", error.what());
    return 1;
  }
}
