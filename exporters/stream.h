// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "exporters/otlp.h"
#include "exporters/queue_budget.h"
#include "hostd/core/ids.h"
#include "hostd/core/result.h"

namespace kvmscope::exporters {

/// Where one stream goes and how it proves who it is. Strings are final: `${tenant.id}` has been replaced.
struct StreamConfig {
  enum class Kind { file, otlp_grpc } kind = Kind::file;

  // otlp_grpc
  std::string endpoint;  ///< host:port
  bool tls = true;
  std::string ca_file;    ///< empty: the system's roots
  std::string cert_file;  ///< client certificate (mTLS), with key_file
  std::string key_file;
  std::string server_name;  ///< the name that the certificate must carry; empty: the endpoint's host
  std::string token_file;  ///< bearer token; read anew when the file changes. Must not be readable by others.
  std::map<std::string, std::string> headers;  ///< x-tenant-id and whatever is configured
  std::chrono::milliseconds timeout{10'000};
  std::chrono::milliseconds backoff_min{1'000};
  std::chrono::milliseconds backoff_max{30'000};
  bool gzip = true;

  // file
  std::string path;  ///< OTLP JSON lines, 0600; rotated to path.1, path.2 ...
  std::uint64_t rotate_bytes = 64U << 20;
  unsigned keep_files = 3;

  std::size_t queue_bytes = 16U << 20;  ///< beyond it the oldest of what is superseded is dropped and counted
  std::size_t max_request_bytes = 3'500'000;
  bool operator==(const StreamConfig&) const = default;
};

/// The memory that the queues of all streams may take together.
inline constexpr std::size_t kAllQueuesBytes = 256U << 20;

/// Figures since the stream was made. All are exported as self-metrics; none holds a secret.
struct StreamStats {
  std::uint64_t sent_items = 0;  ///< acknowledged by the receiver
  std::uint64_t sent_requests = 0;
  std::uint64_t failed_requests = 0;  ///< each attempt that did not succeed
  std::uint64_t retried_requests = 0;
  std::uint64_t dropped_items_queue = 0;      ///< the queue was full
  std::uint64_t dropped_items_permanent = 0;  ///< the receiver refused for good
  std::uint64_t rejected_items = 0;           ///< partial success: the receiver took the rest
  std::uint64_t auth_failures = 0;            ///< UNAUTHENTICATED, PERMISSION_DENIED
  std::uint64_t refused_batches = 0;          ///< made for another tenant: a bug, never sent
  std::size_t queued_batches = 0;
  std::size_t queued_bytes = 0;
  std::uint64_t oldest_queued_ns = 0;    ///< age of the oldest waiting batch
  bool healthy = true;                   ///< the last attempt succeeded, or there was none yet
  bool waiting_for_credentials = false;  ///< held until a credential file changes
  std::string last_error;                ///< one line, no secret; empty after a success
};

/// What a stream has not brought to its receiver.
struct Undelivered {
  std::size_t batches = 0;
  std::size_t points = 0;   ///< of metrics
  std::size_t records = 0;  ///< of logs
  std::size_t finals = 0;   ///< ended VMs whose last values (Values::last) are among the points
  bool newest = false;      ///< the newest state of the metrics is among them, not only what it supersedes
  bool operator==(const Undelivered&) const = default;
};

/// One destination of one tenant (or the operator's): queue, connection, credentials, backoff. Nothing is
/// shared with any other stream.
///
/// Threads: called on the executor's thread only; gRPC's own threads post back to it. submit() never blocks.
class Stream {
 public:
  /// Told on the executor's thread, in order of submission within each signal (but for what flush() sends out
  /// of order), what became of a batch.
  enum class Outcome {
    acknowledged,  ///< the receiver has it
    refused,       ///< the receiver will not have it, or a part of it, however often it is offered
    dropped,       ///< never offered, or not for long enough: there was no room for it; or another tenant's
  };
  using Done = std::function<void(Outcome)>;

  /// `budget`: shared by the streams that are not to take more memory together; may be none.
  static core::Result<std::unique_ptr<Stream>> make(boost::asio::any_io_executor executor,
                                                    core::TenantId tenant, StreamConfig config,
                                                    std::shared_ptr<QueueBudget> budget = nullptr);
  virtual ~Stream() = default;

  /// Queues a batch. One of another tenant is refused and counted. `done` is called exactly once unless the
  /// stream is destroyed first.
  virtual void submit(Batch batch, Done done) = 0;
  virtual StreamStats stats() const = 0;
  virtual const StreamConfig& config() const = 0;
  /// A clean stop: tries at once what waits, and calls `over` when nothing is queued or the deadline has
  /// passed, with what has not been delivered since the call (refused, dropped) or still waits.
  /// As long as the receiver is quick enough for everything, the order stays; else what a bill needs comes
  /// first (see SendQueue).
  virtual void flush(std::chrono::milliseconds deadline, std::function<void(const Undelivered&)> over) = 0;
};

}  // namespace kvmscope::exporters
