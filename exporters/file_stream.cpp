// SPDX-License-Identifier: Apache-2.0
#include "exporters/file_stream.h"

#include "exporters/otlp_json.h"

namespace kvmscope::exporters {
namespace {

/// How long a destroyed stream waits for a write that is under way; a hanging disk then keeps the thread
/// alone.
constexpr std::chrono::milliseconds kGrace{1'000};

Attempt write(LineFile& file, Signal signal, const std::string& request) {
  const auto line = otlp_json_line(signal, request);
  if (!line) return {Attempt::Verdict::refused, line.error().message(), 0, std::nullopt};
  if (auto written = file.append(*line); !written) {
    return {Attempt::Verdict::retry, written.error().message(), 0, std::nullopt};
  }
  return {};
}

}  // namespace

FileStream::FileStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config,
                       std::shared_ptr<QueueBudget> budget)
    : QueuedStream(std::move(executor), std::move(tenant), std::move(config), std::move(budget)),
      file_(std::make_shared<LineFile>(this->config().path, this->config().rotate_bytes,
                                       this->config().keep_files)),
      worker_("kvmscope-file", kGrace) {}

core::Result<void> FileStream::start(Signal signal, const Bytes& request) {
  return worker_.run([this, file = file_, box = mailbox(), signal, request] {
    box->post([this, signal, attempt = write(*file, signal, *request)] { finished(signal, attempt); });
  });
}

}  // namespace kvmscope::exporters
