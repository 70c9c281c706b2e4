// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <set>
#include <string>

namespace kvmscope::virt {

/// Tells which domains libvirt has just written a new status file for (RUN_DIR/NAME.xml).
///
/// libvirt has no event for an external snapshot, nor for the begin of a block job, but writes the domain's
/// status anew, so as not to lose it, at each of them, and never when it is only asked something (seen with
/// 9.0). Such a sign says no more than: look again. Where the directory cannot be watched, there is none.
///
/// One thread, the executor's. Never blocks.
class StatusFiles {
 public:
  using Names = std::set<std::string>;

  StatusFiles(const boost::asio::any_io_executor& executor, std::string directory,
              std::function<void(Names)> on_written);

  /// The directory may appear, or be another, whenever a libvirtd starts. Idempotent.
  void watch();

 private:
  void read();
  void take(std::size_t size);

  std::string directory_;
  std::function<void(Names)> on_written_;
  boost::asio::posix::stream_descriptor events_;
  boost::asio::steady_timer settled_;
  alignas(8) std::array<char, 4096> buffer_{};
  Names written_;
};

}  // namespace kvmscope::virt
