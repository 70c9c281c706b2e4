// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/thread_pool.hpp>

#include "exporters/queued_stream.h"
#include "hostd/core/unique_fd.h"

namespace kvmscope::exporters {

/// OTLP JSON lines: one request a line, readable by whatever reads the Collector's file exporter. Written on a thread of
/// its own, so that a slow or full disk delays nobody. Never leaves half a line behind.
class FileStream final : public QueuedStream {
 public:
  FileStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config);
  ~FileStream() override;

 private:
  void send(Signal signal, const std::string& request, Reply reply) override;

  // On the writer's thread only.
  SendResult write(Signal signal, const std::string& request);
  core::Result<void> open_file();
  void rotate() const;

  core::UniqueFd file_;
  boost::asio::thread_pool writer_{1};
};

}  // namespace kvmscope::exporters
