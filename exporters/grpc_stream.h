// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <condition_variable>
#include <mutex>
#include <set>

#include "exporters/credentials.h"
#include "exporters/queued_stream.h"

namespace kvmscope::exporters {

/// OTLP over gRPC. A connection, its credentials and its retries are this stream's alone: gRPC's own sharing of
/// connections, hidden retries and proxies are off.
class GrpcStream final : public QueuedStream {
 public:
  /// Errors: a header or an endpoint that gRPC would not take; a token that would travel in the clear. Credential
  /// files that cannot be read are no error: the stream holds what it is given until they can.
  static core::Result<std::unique_ptr<Stream>> open(boost::asio::any_io_executor executor, core::TenantId tenant,
                                                    StreamConfig config);
  ~GrpcStream() override;

 private:
  GrpcStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config);
  void send(Signal signal, const std::string& request, Reply reply) override;
  void watch_credentials();
  void load_credentials();
  void connect();

  struct Call;
  /// Calls under way; shared with gRPC's threads, which take theirs out.
  struct Calls {
    std::mutex mutex;
    std::condition_variable empty;
    std::set<Call*> open;
  };

  boost::asio::steady_timer watch_;
  std::string fingerprint_;
  std::optional<Credentials> credentials_;
  std::string credentials_error_;
  std::unique_ptr<grpc::GenericStub> stub_;
  Calls calls_;
};

}  // namespace kvmscope::exporters
