// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "exporters/line_file.h"
#include "exporters/queued_stream.h"
#include "exporters/worker.h"

namespace kvmscope::exporters {

/// OTLP JSON lines into a file. A thread of its own prints and writes, so that a slow or full disk delays
/// nothing else; a failed write is retried like any other attempt.
class FileStream final : public QueuedStream {
 public:
  FileStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config,
             std::shared_ptr<QueueBudget> budget);

 private:
  core::Result<void> start(Signal signal, const Bytes& request) override;

  std::shared_ptr<LineFile> file_;  ///< the worker's own
  Worker worker_;                   ///< after the file: ends before it is let go of
};

}  // namespace kvmscope::exporters
