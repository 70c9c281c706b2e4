// SPDX-License-Identifier: Apache-2.0
#include "hostd/qemu_monitors.h"

#include <algorithm>
#include <utility>

#include "hostd/tenant_template.h"

namespace kvmscope::hostd {

void QemuMonitors::update(const std::vector<Vm>& running) {
  for (auto& [process, monitor] : monitors_) monitor.runs = false;
  const auto now = Clock::now();
  for (const Vm& vm : running) {
    Monitor& monitor = monitors_.try_emplace(vm.process, Monitor{.vm = vm}).first->second;
    monitor.runs = true;
    if (!monitor.client && monitor.next_try <= now) connect(monitor);
  }
  std::erase_if(monitors_, [](const auto& entry) { return !entry.second.runs; });
}

void QemuMonitors::connect(Monitor& monitor) {
  const core::ProcessKey process = monitor.vm.process;
  // No callback comes once the client is gone, which goes with its monitor.
  Monitor* const here = &monitor;
  auto client = virt::QmpClient::connect(
      {.executor = options_.executor,
       .socket = expand_vm(options_.socket, monitor.vm.uuid),
       .qemu_pid = static_cast<std::int32_t>(process.tgid),
       // Of what it may say only events are wanted, which are short.
       .bytes_per_second = 65'536,
       .bytes_at_once = 1'048'576,
       .limits = {.line_bytes = 65'536, .depth = 32, .values = 4'096}},
      {.on_ready =
           [this, here](const virt::QmpGreeting&) {
             here->ready = true;
             here->ready_at = Clock::now();
             say(*here, {});
           },
       .on_event = [this, process](const virt::QmpEvent& event) { options_.on_event(process, event); },
       .on_closed = [this, here](const core::Error& error) { failed(*here, error); }});
  if (!client) return failed(monitor, client.error());
  monitor.client = std::move(*client);
}

void QemuMonitors::failed(Monitor& monitor, const core::Error& error) {
  monitor.client.reset();
  if (std::exchange(monitor.ready, false) && Clock::now() - monitor.ready_at >= options_.retry_max)
    monitor.backoff = {};
  monitor.backoff = std::clamp(monitor.backoff * 2, options_.retry_min, options_.retry_max);
  monitor.next_try = Clock::now() + monitor.backoff;
  say(monitor, core::fail(error));
}

void QemuMonitors::say(Monitor& monitor, const core::Result<void>& state) const {
  const std::string text = state ? "connected" : state.error().message();
  if (std::exchange(monitor.said, text) != text) options_.on_state(monitor.vm, state);
}

std::size_t QemuMonitors::connected() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(monitors_, [](const auto& entry) { return entry.second.ready; }));
}

}  // namespace kvmscope::hostd
