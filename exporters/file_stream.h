// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <thread>

#include "exporters/queued_stream.h"

namespace kvmscope::exporters {

/// OTLP JSON lines into a file. A thread of its own prints and writes, so that a slow or full disk delays
/// nothing else; a failed write is retried like any other attempt.
class FileStream final : public QueuedStream {
 public:
  FileStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config);
  ~FileStream() override;

 private:
  struct Writer;
  void start(Signal signal, const Bytes& request) override;

  std::shared_ptr<Writer> writer_;
  std::thread thread_;
};

}  // namespace kvmscope::exporters
