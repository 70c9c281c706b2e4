// SPDX-License-Identifier: Apache-2.0
#include "hostd/live_top.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "hostd/human.h"
#include "hostd/render.h"

namespace kvmscope::hostd {
namespace {

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

/// The signals that end or change the display, taken by waiting for them instead of by handlers.
class Signals {
 public:
  Signals() {
    sigemptyset(&set_);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGWINCH}) sigaddset(&set_, signal);
    sigprocmask(SIG_BLOCK, &set_, &before_);
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;
  ~Signals() { sigprocmask(SIG_SETMASK, &before_, nullptr); }

  /// Waits; false if it is time to end.
  bool wait(std::chrono::milliseconds timeout) const {
    const timespec limit{static_cast<time_t>(timeout.count() / 1'000),
                         static_cast<long>(timeout.count() % 1'000 * 1'000'000)};
    const int signal = sigtimedwait(&set_, nullptr, &limit);
    return signal < 0 || signal == SIGWINCH;
  }

 private:
  sigset_t set_{};
  sigset_t before_{};
};

/// The terminal's second screen, without a cursor; the first one comes back however this ends.
class AlternateScreen {
 public:
  AlternateScreen() { print("\x1b[?1049h\x1b[?25l"); }
  AlternateScreen(const AlternateScreen&) = delete;
  AlternateScreen& operator=(const AlternateScreen&) = delete;
  ~AlternateScreen() { print("\x1b[?25h\x1b[?1049l"); }

  static void show(const std::string& frame) {
    std::string out = "\x1b[H";
    for (const char c : frame) {
      if (c == '\n') out += "\x1b[K";
      out += c;
    }
    print(out + "\x1b[J");
  }
};

core::Result<void> on_terminal(const std::function<core::Result<TopView>()>& ask,
                               std::chrono::milliseconds interval, bool colours) {
  auto top = ask();
  if (!top) return core::fail(top.error());
  TopView last = *top;
  {
    const Signals signals;
    const AlternateScreen screen;
    do {
      winsize size{};
      if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) size = {24, 80, 0, 0};
      // Two lines above the rows, two below.
      const auto lines = static_cast<std::size_t>(std::max(1, size.ws_row - 4));
      top = ask();
      if (top) last = *top;
      std::string frame = render_top(last, lines, {size.ws_col, colours});
      if (!top) frame += fit(safe_text(top.error().message()), size.ws_col);
      AlternateScreen::show(frame);
    } while (signals.wait(interval));
  }
  print(render_top(last, 20, {0, colours}));
  return {};
}

core::Result<void> as_stream(const std::function<core::Result<TopView>()>& ask,
                             std::chrono::milliseconds interval, bool json) {
  const Signals signals;
  std::uint64_t printed = 0;
  do {
    const auto top = ask();
    if (!top) return core::fail(top.error());
    if (top->time_unix_ns == printed) continue;
    if (json)
      print(to_line(to_json(*top)) + "\n");
    else
      print((printed == 0 ? "" : "\n") + render_top(*top, 0, {}));
    printed = top->time_unix_ns;
  } while (signals.wait(interval));
  return {};
}

}  // namespace

core::Result<void> live_top(const std::function<core::Result<TopView>()>& ask,
                            std::chrono::milliseconds interval, bool json, bool colours) {
  if (json || isatty(STDOUT_FILENO) == 0) return as_stream(ask, interval, json);
  return on_terminal(ask, interval, colours);
}

}  // namespace kvmscope::hostd
