// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "exporters/credentials.h"
#include "exporters/queued_stream.h"
#include "exporters/worker.h"

namespace grpc {
class Channel;
}

namespace kvmscope::exporters {

/// OTLP over gRPC: a channel (and so a connection) of its own, made anew when a certificate changed, when it
/// could not connect, or when a call timed out on it.
///
/// Credential files are read before every attempt, on a thread of the stream's own: they may lie on a mount
/// that hangs. Then attempts go on with what was read before, and without it they wait; nobody else does.
class GrpcStream final : public QueuedStream {
 public:
  using ReadCredential =
      std::function<core::Result<std::string>(const std::string& path, CredentialKind kind)>;

  GrpcStream(const boost::asio::any_io_executor& executor, core::TenantId tenant, StreamConfig config,
             std::shared_ptr<QueueBudget> budget, ReadCredential read = read_credential);
  ~GrpcStream() override;

 private:
  struct Call;
  struct Reading;
  void look_at_credentials(const std::function<void()>& looked) override;
  std::uint64_t credentials_version() const override { return version_; }
  core::Result<void> prepare() override;
  core::Result<void> start(Signal signal, const Bytes& request) override;

  void credentials_read(Reading& reading);
  void answer_looks();
  void ended(Signal signal, const std::shared_ptr<Call>& call, Attempt attempt, bool timed_out);
  std::shared_ptr<grpc::Channel> make_channel() const;
  std::vector<std::string> secrets() const;

  Credential ca_;
  Credential cert_;
  Credential key_;
  Credential token_;
  const std::array<Credential*, 4> credentials_{&ca_, &cert_, &key_, &token_};
  const ReadCredential read_;
  Worker reader_;
  bool reading_ = false;
  bool overdue_ = false;  ///< the reader hangs
  boost::asio::steady_timer read_timer_;
  std::vector<std::function<void()>> looks_;  ///< to be told when it has read
  std::uint64_t version_ = 0;
  std::string credential_error_;
  std::shared_ptr<grpc::Channel> channel_;
  std::array<std::shared_ptr<Call>, 2> calls_;  ///< in flight, by signal
};

}  // namespace kvmscope::exporters
