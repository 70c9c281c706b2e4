// SPDX-License-Identifier: Apache-2.0
#include "virt/event_loop.h"

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

#include <string>

namespace kvmscope::virt {
namespace {
std::atomic<bool> loop_taken = false;
// The loop looks at `stopping_` at least that often, even if the wake-up by the timer were lost.
constexpr int kIdleTickMs = 1'000;
}  // namespace

core::Result<void> initialize_libvirt() {
  static const bool registered = [] {
    virSetErrorFunc(nullptr, [](void*, virErrorPtr) noexcept {});
    return virInitialize() == 0 && virEventRegisterDefaultImpl() == 0;
  }();
  if (!registered)
    return core::fail(core::ErrorCode::system, std::string("libvirt: ") + virGetLastErrorMessage());
  return {};
}

core::Result<std::unique_ptr<EventLoop>> EventLoop::start() {
  if (const auto ready = initialize_libvirt(); !ready) return core::fail(ready.error());
  if (loop_taken.exchange(true))
    return core::fail(core::ErrorCode::already_exists, "libvirt's event loop is in use by another source");
  const int timer = virEventAddTimeout(kIdleTickMs, [](int, void*) noexcept {}, nullptr, nullptr);
  if (timer < 0) {
    loop_taken = false;
    return core::fail(core::ErrorCode::system,
                      std::string("libvirt event timer: ") + virGetLastErrorMessage());
  }
  return std::unique_ptr<EventLoop>(new EventLoop(timer));
}

EventLoop::EventLoop(int timer) : timer_(timer), thread_([this] { run(); }) {}

EventLoop::~EventLoop() {
  stopping_ = true;
  virEventUpdateTimeout(timer_, 0);
  thread_.join();
  virEventRemoveTimeout(timer_);
  loop_taken = false;
}

void EventLoop::run() noexcept {
  while (!stopping_) virEventRunDefaultImpl();
}

}  // namespace kvmscope::virt
