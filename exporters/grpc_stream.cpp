// SPDX-License-Identifier: Apache-2.0
#include "exporters/grpc_stream.h"

#include <grpcpp/alarm.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>

#include "exporters/response.h"

namespace kvmscope::exporters {
namespace {

/// An answer is a few bytes; it may be gzip, so this also bounds what it can inflate to.
constexpr int kMaxResponseBytes = 64 << 10;
constexpr int kKeepaliveTimeMs = 300'000;  ///< what servers allow by default
constexpr int kKeepaliveTimeoutMs = 20'000;

const char* method(Signal signal) {
  return signal == Signal::metrics ? "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
                                   : "/opentelemetry.proto.collector.logs.v1.LogsService/Export";
}

/// The request's bytes as they are, kept alive until gRPC has let go of them.
grpc::ByteBuffer view(const std::shared_ptr<const std::string>& bytes) {
  auto* holder = new std::shared_ptr<const std::string>(bytes);
  const grpc::Slice slice(
      const_cast<char*>(bytes->data()), bytes->size(),
      [](void* user) noexcept { delete static_cast<std::shared_ptr<const std::string>*>(user); }, holder);
  return {&slice, 1};
}

std::string text(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string out;
  if (!buffer.Dump(&slices).ok()) return out;
  for (const grpc::Slice& slice : slices) {
    out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return out;
}

gpr_timespec after(std::chrono::milliseconds delay) {
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(delay.count(), GPR_TIMESPAN));
}

/// Lets go of a call on a thread of gRPC's executor. A call may hold the last channel of the process, and
/// that joins the threads on which calls complete: it must not happen on one of them.
void release_elsewhere(std::shared_ptr<void> call) {
  auto* alarm = new grpc::Alarm;
  alarm->Set(gpr_now(GPR_CLOCK_MONOTONIC),
             [alarm, call = std::move(call)](bool /*expired*/) { delete alarm; });
}

}  // namespace

/// One attempt. Owned by itself from launch to completion, whatever becomes of the stream.
struct GrpcStream::Call {
  std::shared_ptr<grpc::Channel> channel;
  grpc::ClientContext context;
  grpc::ByteBuffer request;
  grpc::ByteBuffer response;
  grpc::Alarm alarm;
  std::function<void(std::shared_ptr<Call>, const grpc::Status&)> completed;  ///< on a thread of gRPC's
  std::shared_ptr<Call> self;
  std::vector<std::string> secrets;  ///< of this attempt: the receiver may repeat them in its answer

  /// gRPC compresses on the thread that starts a call, which takes a tenth of a second for a large request:
  /// so a thread of its executor does it.
  void launch(std::shared_ptr<Call> own, Signal signal) {
    self = std::move(own);
    alarm.Set(gpr_now(GPR_CLOCK_MONOTONIC), [this, signal](bool /*expired*/) {
      grpc::GenericStub(channel).UnaryCall(&context, method(signal), {}, &request, &response,
                                           [this](const grpc::Status& status) {
                                             auto kept = std::move(self);
                                             completed(kept, status);
                                             release_elsewhere(std::move(kept));
                                           });
    });
  }
};

GrpcStream::GrpcStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config)
    : QueuedStream(std::move(executor), std::move(tenant), std::move(config)),
      ca_(this->config().ca_file, CredentialFile::Kind::certificate),
      cert_(this->config().cert_file, CredentialFile::Kind::certificate),
      key_(this->config().key_file, CredentialFile::Kind::private_key),
      token_(this->config().token_file, CredentialFile::Kind::token) {}

GrpcStream::~GrpcStream() {
  for (const auto& call : calls_) {
    if (call != nullptr) call->context.TryCancel();
  }
}

void GrpcStream::refresh(CredentialFile& file, bool thorough, bool channel_depends) {
  if (!file.configured()) return;
  const auto changed =
      file.refresh(thorough ? CredentialFile::Look::always : CredentialFile::Look::if_changed);
  if (!changed) {
    if (credential_error_.empty()) credential_error_ = changed.error().message();
    return;
  }
  if (!*changed) return;
  ++version_;
  if (channel_depends) channel_.reset();
}

std::uint64_t GrpcStream::credentials_version(bool thorough) {
  credential_error_.clear();
  refresh(ca_, thorough, true);
  refresh(cert_, thorough, true);
  refresh(key_, thorough, true);
  refresh(token_, thorough, false);
  return version_;
}

core::Result<void> GrpcStream::prepare() {
  for (const CredentialFile* file : {&ca_, &cert_, &key_, &token_}) {
    if (file->configured() && file->content().empty()) {
      return core::fail(core::ErrorCode::permission_denied, credential_error_);
    }
  }
  if (channel_ == nullptr) channel_ = make_channel();
  return {};
}

std::shared_ptr<grpc::Channel> GrpcStream::make_channel() const {
  const StreamConfig& to = config();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else channels to one address share a connection
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, static_cast<int>(to.backoff_min.count()));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, static_cast<int>(to.backoff_max.count()));
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
                   static_cast<int>(to.timeout.count()));  // time to connect
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetMaxReceiveMessageSize(kMaxResponseBytes);
  arguments.SetUserAgentPrefix("kvmscope/" KVMSCOPE_VERSION);
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (to.tls) {
    if (!to.server_name.empty()) arguments.SetSslTargetNameOverride(to.server_name);
    credentials = grpc::SslCredentials({ca_.content(), key_.content(), cert_.content()});
  }
  return grpc::CreateCustomChannel("dns:///" + to.endpoint, credentials, arguments);
}

void GrpcStream::start(Signal signal, const Bytes& request) {
  auto call = std::make_shared<Call>();
  call->channel = channel_;
  call->request = view(request);
  call->context.set_deadline(after(config().timeout));
  if (config().gzip) call->context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  for (const auto& [key, value] : config().headers) call->context.AddMetadata(key, value);
  if (token_.configured()) call->context.AddMetadata("authorization", "Bearer " + token_.content());
  call->secrets = secrets();
  calls_[static_cast<std::size_t>(signal)] = call;

  call->completed = [this, box = mailbox(), signal](std::shared_ptr<Call> over, const grpc::Status& status) {
    Attempt attempt =
        status.ok() ? judge_response(signal, text(over->response))
                    : judge_failure(status.error_code(), status.error_message(), status.error_details());
    const bool timed_out = status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
    box->post([this, signal, over = std::move(over), attempt = std::move(attempt), timed_out]() mutable {
      ended(signal, over, std::move(attempt), timed_out);
    });
  };
  call->launch(call, signal);
}

void GrpcStream::ended(Signal signal, const std::shared_ptr<Call>& call, Attempt attempt, bool timed_out) {
  calls_[static_cast<std::size_t>(signal)].reset();
  // What could not connect goes on by its own timetable, and what timed out may be dead: the next attempt
  // connects anew, with an error of its own.
  const bool broken = timed_out || call->channel->GetState(false) == GRPC_CHANNEL_TRANSIENT_FAILURE;
  if (broken && channel_ == call->channel) channel_.reset();
  if (attempt.verdict == Attempt::Verdict::unauthenticated && !credential_error_.empty()) {
    attempt.message += " (" + credential_error_ + ")";
  }
  attempt.message = one_line(std::move(attempt.message), call->secrets);
  finished(signal, attempt);
}

std::vector<std::string> GrpcStream::secrets() const {
  std::vector<std::string> out = {token_.content()};
  for (const auto& [key, value] : config().headers) {
    if (key != "x-tenant-id") out.push_back(value);
  }
  // The longest first: one may begin another.
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
  return out;
}

}  // namespace kvmscope::exporters
