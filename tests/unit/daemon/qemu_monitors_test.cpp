// SPDX-License-Identifier: Apache-2.0
#include "hostd/qemu_monitors.h"

#include <filesystem>
#include <thread>

#include "tests/unit/virt/qmp_fixture.h"

namespace kvmscope::hostd {
namespace {

using virt::event;
using virt::FakeMonitor;
using virt::kGreeting;
using Seen = std::vector<std::string>;

struct Fixture {
  QemuMonitors make(std::chrono::milliseconds retry_max) {
    return QemuMonitors({.executor = loop.get_executor(),
                         .socket = tree.path("${vm.uuid}.sock"),
                         .on_event =
                             [this](core::ProcessKey of, const virt::QmpEvent& said) {
                               seen.push_back(std::to_string(of.tgid) + " said " + said.name);
                             },
                         .on_state =
                             [this](const QemuMonitors::Vm& of, const core::Result<void>& state) {
                               seen.push_back(of.uuid.value + (state ? " connected" : " failed"));
                             },
                         .retry_min = std::chrono::milliseconds(1),
                         .retry_max = retry_max});
  }
  void settle() {
    loop.restart();
    while (loop.poll() > 0) loop.restart();
  }
  /// The client's ids are random.
  std::string negotiated(const FakeMonitor& monitor) const {
    const auto asked = nlohmann::json::parse(monitor.take());
    REQUIRE(asked.at("execute") == "qmp_capabilities");
    return virt::reply(asked.at("id").get<std::uint64_t>());
  }
  void greet(FakeMonitor& monitor) {
    monitor.accept();
    monitor.send(kGreeting);
    settle();
    monitor.send(negotiated(monitor));
    settle();
  }
  Seen told() { return std::exchange(seen, {}); }

  boost::asio::io_context loop;
  virt::TempTree tree;
  const QemuMonitors::Vm vm{{static_cast<std::uint32_t>(::getpid()), 7}, {"u-1"}};
  Seen seen;
};

TEST_CASE_METHOD(Fixture,
                 "a VM's monitor: not there, there, gone, there again, and no more once the VM ended") {
  QemuMonitors monitors = make(std::chrono::milliseconds(5));
  const auto next = [&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    monitors.update({vm});
    settle();
  };
  for (int i = 0; i < 3; ++i) next();
  CHECK(told() == Seen{"u-1 failed"});  // once
  const std::string pid = std::to_string(vm.process.tgid);
  for (int i = 0; i < 2; ++i) {
    FakeMonitor monitor(tree.path("u-1.sock"));
    next();
    CHECK(monitors.connected() == 0);
    greet(monitor);
    CHECK(monitors.connected() == 1);
    monitor.send(event("STOP"));
    settle();
    CHECK(told() == Seen{"u-1 connected", pid + " said STOP"});
    if (i == 1) {
      monitors.update({});
      settle();
      CHECK(monitor.ended());
    }
    monitor.close();
    std::filesystem::remove(tree.path("u-1.sock"));
    settle();
    CHECK(monitors.connected() == 0);
    CHECK(told() == (i == 0 ? Seen{"u-1 failed"} : Seen{}));
  }
}

TEST_CASE_METHOD(Fixture, "who breaks off at once is tried less and less often") {
  QemuMonitors monitors = make(std::chrono::hours(1));
  FakeMonitor monitor(tree.path("u-1.sock"));
  int tries = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
  while (std::chrono::steady_clock::now() < end) {
    monitors.update({vm});
    settle();
    if (monitors.connected() == 0 && monitor.waiting()) {
      greet(monitor);
      CHECK(monitors.connected() == 1);
      monitor.close();
      settle();
      ++tries;
    }
  }
  CHECK(tries >= 3);
  CHECK(tries <= 9);  // 1 + 2 + 4 ... ms
}

}  // namespace
}  // namespace kvmscope::hostd
