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

  std::size_t queue_bytes = 16U << 20;  ///< beyond it the oldest batch is dropped and counted
  std::size_t max_request_bytes = 3'500'000;
  bool operator==(const StreamConfig&) const = default;
};

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

/// One destination of one tenant (or the operator's): queue, connection, credentials, backoff. Nothing is
/// shared with any other stream.
///
/// Threads: called on the executor's thread only; gRPC's own threads post back to it. submit() never blocks.
class Stream {
 public:
  /// Told on the executor's thread, in order of submission within each signal, what became of a batch.
  enum class Outcome { acknowledged, dropped, refused };
  using Done = std::function<void(Outcome)>;

  static core::Result<std::unique_ptr<Stream>> make(boost::asio::any_io_executor executor,
                                                    core::TenantId tenant, StreamConfig config);
  virtual ~Stream() = default;

  /// Queues a batch. One of another tenant is refused and counted. `done` is called exactly once unless the
  /// stream is destroyed first.
  virtual void submit(Batch batch, Done done) = 0;
  virtual StreamStats stats() const = 0;
  virtual const StreamConfig& config() const = 0;
  /// Tries at once what waits (a clean stop), then calls `idle` when nothing is queued or the deadline has
  /// passed.
  virtual void flush(std::chrono::milliseconds deadline, std::function<void()> idle) = 0;
};

}  // namespace kvmscope::exporters
