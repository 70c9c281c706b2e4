// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "exporters/credentials.h"
#include "exporters/queued_stream.h"

namespace grpc {
class Channel;
}

namespace kvmscope::exporters {

/// OTLP over gRPC: a channel (and so a connection) of its own, made anew when a certificate changed, when it
/// could not connect, or when a call timed out on it.
class GrpcStream final : public QueuedStream {
 public:
  GrpcStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config);
  ~GrpcStream() override;

 private:
  struct Call;
  core::Result<void> prepare() override;
  void start(Signal signal, const Bytes& request) override;
  std::uint64_t credentials_version(bool thorough) override;

  void ended(Signal signal, const std::shared_ptr<Call>& call, Attempt attempt, bool timed_out);
  void refresh(CredentialFile& file, bool thorough, bool channel_depends);
  std::shared_ptr<grpc::Channel> make_channel() const;
  std::vector<std::string> secrets() const;

  CredentialFile ca_;
  CredentialFile cert_;
  CredentialFile key_;
  CredentialFile token_;
  std::uint64_t version_ = 0;
  std::string credential_error_;
  std::shared_ptr<grpc::Channel> channel_;
  std::array<std::shared_ptr<Call>, 2> calls_;  ///< in flight, by signal
};

}  // namespace kvmscope::exporters
