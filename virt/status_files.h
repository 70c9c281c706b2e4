// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "virt/domain_xml.h"

namespace kvmscope::virt {

/// Tells which domains have become others by what libvirt notes down about them (RUN_DIR/NAME.xml).
///
/// libvirt has no event for an external snapshot, nor for the begin of a block job, but writes the domain's
/// status anew at each of them, so as not to lose it. It does so for much that is of no meaning here, too, at
/// the begin of a domain's end among others, when it is harmful to ask libvirt: a call about a domain whose
/// lock is taken waits with libvirt's list of domains locked (virDomainObjListFindByUUID), so that no other
/// domain can start. So the content is compared first. It is libvirt's own format: where it cannot be read,
/// nothing is told, and the next list must do.
///
/// One thread, the executor's. Reads small files of a tmpfs, never anything that blocks.
class StatusFiles {
 public:
  using Names = std::set<std::string>;

  StatusFiles(const boost::asio::any_io_executor& executor, std::string directory,
              std::function<void(Names)> on_changed);

  /// The directory may appear, or be another, whenever a libvirtd starts. Idempotent.
  void watch();

 private:
  void read();
  void take(std::size_t size);
  void compare();
  std::optional<DomainXml> content(const std::string& name) const;

  std::string directory_;
  std::function<void(Names)> on_changed_;
  boost::asio::posix::stream_descriptor events_;
  boost::asio::steady_timer settled_;
  alignas(8) std::array<char, 4096> buffer_{};
  Names written_;
  std::map<std::string, DomainXml> known_;
};

}  // namespace kvmscope::virt
