// SPDX-License-Identifier: Apache-2.0
#include "hostd/discovery.h"

#include <boost/asio/post.hpp>
#include <utility>

namespace kvmscope::hostd {

tenancy::ProcessHint hint_of(const virt::QemuProcess& process) {
  return {.uuid = process.uuid,
          .guest_name = process.guest_name,
          .capability_probe = process.capability_probe,
          .in_container = process.in_container};
}

Discovery::Discovery(boost::asio::any_io_executor executor, std::string proc_root,
                     std::vector<std::string> qemu_names)
    : executor_(std::move(executor)), proc_root_(std::move(proc_root)), qemu_names_(std::move(qemu_names)) {}

Discovery::~Discovery() {
  thread_.stop();
  thread_.join();
}

void Discovery::describe(core::ProcessKey process,
                         std::function<void(std::optional<tenancy::ProcessHint>)> done) {
  boost::asio::post(thread_, [this, process, done = std::move(done)]() mutable {
    std::optional<tenancy::ProcessHint> hint;
    if (const auto found = virt::describe_qemu(proc_root_, process)) hint = hint_of(*found);
    boost::asio::post(executor_, [hint = std::move(hint), done = std::move(done)] { done(hint); });
  });
}

void Discovery::after(std::function<void()> done) {
  boost::asio::post(
      thread_, [this, done = std::move(done)]() mutable { boost::asio::post(executor_, std::move(done)); });
}

void Discovery::scan(std::vector<core::ProcessKey> known, std::function<void(Found)> done) {
  boost::asio::post(thread_, [this, known = std::move(known), done = std::move(done)]() mutable {
    Found found;
    for (virt::QemuProcess& process : virt::scan_qemu(proc_root_, qemu_names_)) {
      if (!process.capability_probe && !process.in_container) found.running.push_back(std::move(process));
    }
    for (const core::ProcessKey& process : known) {
      const auto now = virt::process_key(proc_root_, process.tgid);
      if (!now || *now != process) found.gone.push_back(process);
    }
    boost::asio::post(
        executor_, [found = std::move(found), done = std::move(done)]() mutable { done(std::move(found)); });
  });
}

}  // namespace kvmscope::hostd
