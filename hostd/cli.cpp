// SPDX-License-Identifier: Apache-2.0
// kvmscope: asks the daemon what it sees, and shows it.

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "hostd/check_local.h"
#include "hostd/config.h"
#include "hostd/config_values.h"
#include "hostd/control_client.h"
#include "hostd/core/clock.h"
#include "hostd/live_top.h"
#include "hostd/render.h"

namespace kvmscope::hostd {
namespace {

constexpr std::chrono::milliseconds kTimeout{5'000};

enum ExitCode : int { kDone = 0, kFailed = 1, kNoDaemon = 2, kRefused = 3 };

struct Arguments {
  std::string socket = ControlConfig().socket;
  bool json = false;
  bool once = false;
  std::chrono::milliseconds interval{2'000};
};

Screen screen() {
  Screen out;
  if (isatty(STDOUT_FILENO) == 0) return out;
  const char* no_colour = std::getenv("NO_COLOR");
  out.colours = no_colour == nullptr || *no_colour == '\0';
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0) out.columns = size.ws_col;
  return out;
}

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

int complain(const core::Error& error, const Arguments& arguments) {
  const auto say = [](const std::string& line) { fmt::print(stderr, "kvmscope: {}\n", line); };
  switch (error.code()) {
    case core::ErrorCode::unavailable:
      say(
          fmt::format("no daemon answers on {} ({}): start it (systemctl start kvmscope-hostd), or name its "
                      "socket with --socket",
                      arguments.socket, error.message()));
      return kNoDaemon;
    case core::ErrorCode::permission_denied:
      say(fmt::format("refused on {} ({}): run as root, or have this user added to control.allow_users",
                      arguments.socket, error.message()));
      return kRefused;
    case core::ErrorCode::deadline_exceeded:
      say(fmt::format("the daemon on {} did not answer within {}: see its log (journalctl -u kvmscope-hostd)",
                      arguments.socket, duration_text(kTimeout)));
      return kFailed;
    case core::ErrorCode::corrupt:
      say(fmt::format("{} ({}): are kvmscope and kvmscope-hostd of the same release?", error.message(),
                      arguments.socket));
      return kFailed;
    default:
      say(fmt::format("{} ({})", error.message(), arguments.socket));
      return kFailed;
  }
}

core::Result<nlohmann::json> ask(const Arguments& arguments, const char* command) {
  return control_call(arguments.socket, {{"command", command}}, kTimeout);
}

/// Asks for a list and prints it; `parse` and `render` are the list's own.
template <typename Parse, typename Render>
int show(const Arguments& arguments, const char* command, Parse parse, Render render) {
  const auto reply = ask(arguments, command);
  if (!reply) return complain(reply.error(), arguments);
  auto views = parse(*reply);
  if (!views) return complain(views.error(), arguments);
  print(arguments.json ? to_line(to_json(*views)) + "\n" : render(std::move(*views)));
  return kDone;
}

int vms(const Arguments& arguments) {
  return show(arguments, "vms", vms_from_json, [](std::vector<VmView> views) {
    return render_vms(std::move(views), core::SystemClock().unix_ns(), screen());
  });
}

int tenants(const Arguments& arguments) {
  return show(arguments, "tenants", tenants_from_json,
              [](std::vector<TenantView> views) { return render_tenants(std::move(views), screen()); });
}

int top(const Arguments& arguments) {
  if (arguments.once)
    return show(arguments, "top", top_from_json,
                [](TopView view) { return render_top(std::move(view), 0, screen()); });
  const auto reading = [&]() -> core::Result<TopView> {
    const auto reply = ask(arguments, "top");
    if (!reply) return core::fail(reply.error());
    return top_from_json(*reply);
  };
  if (auto done = live_top(reading, arguments.interval, arguments.json, screen().colours); !done)
    return complain(done.error(), arguments);
  return kDone;
}

int check(const Arguments& arguments) {
  const auto reply = ask(arguments, "check");
  std::vector<CheckLine> lines;
  if (reply) {
    auto answered = check_from_json(*reply);
    if (!answered) return complain(answered.error(), arguments);
    lines = std::move(*answered);
  } else if (reply.error().code() == core::ErrorCode::unavailable) {
    lines = check_host(LibvirtConfig().uri);
    lines.insert(lines.begin(), {"daemon", false, fmt::format("does not answer on {}", arguments.socket),
                                 "the lines below are about this user's own process"});
  } else {
    return complain(reply.error(), arguments);
  }
  print(arguments.json ? to_line(to_json(lines)) + "\n" : render_check(lines, screen()));
  return kDone;
}

/// CLI11 reports what a transform throws as the option's error.
std::string checked_interval(const std::string& text) {
  const auto interval = parse_duration(text);
  if (!interval || *interval < std::chrono::milliseconds(100) || *interval > std::chrono::hours(1))
    return "must be a duration between 100ms and 1h, for example 2s";
  return {};
}

constexpr const char* kExitCodes =
    "Exit status: 0 done, 1 failed, 2 no daemon answers, 3 the daemon refuses this user.\n"
    "With --json times are ns (..._ns) or seconds (..._s), and what is not known is null. New fields may be "
    "added;\n"
    "a field is never renamed or given another meaning.";

constexpr const char* kCheckHelp =
    "Asks the daemon; without one, looks at the host itself.\n"
    "--json: [{name, ok, detail, effect}]; effect is what is degraded, empty if nothing is.";
constexpr const char* kVmsHelp =
    "--json: [{uuid, name, domain_id, tenant, tenant_name, tenancy_source, state, pid, slot, generation, "
    "started_unix_ns,\n"
    "epoch_id, disks: [{target, source, dev, backing, reason}], coverage_reason}]; reasons are empty for "
    "what is traced.";
constexpr const char* kTenantsHelp =
    "--json: [{id, name, index, vms, exporter, destination, healthy, waiting_for_credentials, last_error, "
    "sent_items,\n"
    "sent_requests, failed_requests, retried_requests, dropped_items, rejected_items, auth_failures, "
    "ring_drops,\n"
    "queued_batches, queued_bytes, oldest_queued_ns}]; index 0 is the operator's own stream.";
constexpr const char* kTopHelp =
    "Delays are host storage's: from issue to complete; QUEUE P99 is the wait before issue. Ends with "
    "Ctrl-C.\n"
    "--json: one object per reading and line: {time_unix_ns, rows: [{vm, uuid, tenant, tenant_name, disk, "
    "direction,\n"
    "operations_per_s, bytes_per_s, p50_ns, p95_ns, p99_ns, queue_p99_ns, errors, interval_s}]}.";

int run(int argc, char** argv) {
  CLI::App app{"Shows what kvmscope-hostd sees: VMs, their tenants, their disks.", "kvmscope"};
  app.require_subcommand(1);
  app.fallthrough();
  app.footer(kExitCodes);
  Arguments arguments;
  std::string interval;
  app.add_option("--socket", arguments.socket, "The daemon's control socket")->capture_default_str();
  int status = kDone;
  const auto command = [&](const char* name, const char* summary, const char* help,
                           int (*handler)(const Arguments&)) {
    CLI::App* sub = app.add_subcommand(name, summary);
    sub->add_flag("--json", arguments.json, "Print JSON, for programs");
    sub->footer(help);
    sub->callback([&status, &arguments, &interval, handler] {
      if (!interval.empty()) arguments.interval = parse_duration(interval).value_or(arguments.interval);
      status = handler(arguments);
    });
    return sub;
  };
  command("check", "What this host can do, line by line, and what is degraded", kCheckHelp, check);
  command("vms", "VMs, whose they are, and whether they are traced", kVmsHelp, vms);
  command("tenants", "Tenants and the state of their streams", kTenantsHelp, tenants);
  CLI::App* live =
      command("top", "Disks by load, live: rates and delays of the last interval", kTopHelp, top);
  live->add_flag("--once", arguments.once, "Print the last reading and end");
  live->add_option("--interval", interval, "How often to ask (default 2s)")
      ->check(CLI::Validator(checked_interval, "DURATION"));
  CLI11_PARSE(app, argc, argv);
  return status;
}

}  // namespace
}  // namespace kvmscope::hostd

int main(int argc, char** argv) {
  try {
    return kvmscope::hostd::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "kvmscope: {}\n", error.what());
    return kvmscope::hostd::kFailed;
  }
}
