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
/// How long an attempt waits for the credential files: a small part of a clean stop.
constexpr std::chrono::milliseconds kReadPatience{1'000};

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

/// What the reader has found; the same order as credentials_.
struct GrpcStream::Reading {
  Reading() = default;
  Reading(const Reading&) = delete;
  Reading& operator=(const Reading&) = delete;
  ~Reading() {
    for (auto& content : contents) {
      if (content) wipe(*content);
    }
  }
  std::vector<core::Result<std::string>> contents;
};

GrpcStream::GrpcStream(const boost::asio::any_io_executor& executor, core::TenantId tenant,
                       StreamConfig config, std::shared_ptr<QueueBudget> budget, ReadCredential read)
    : QueuedStream(executor, std::move(tenant), std::move(config), std::move(budget)),
      ca_(this->config().ca_file, CredentialKind::certificate),
      cert_(this->config().cert_file, CredentialKind::certificate),
      key_(this->config().key_file, CredentialKind::private_key),
      token_(this->config().token_file, CredentialKind::token),
      read_(std::move(read)),
      reader_("kvmscope-creds", std::chrono::milliseconds(0)),
      read_timer_(executor) {}

GrpcStream::~GrpcStream() {
  for (const auto& call : calls_) {
    if (call != nullptr) call->context.TryCancel();
  }
}

void GrpcStream::look_at_credentials(const std::function<void()>& looked) {
  if (std::ranges::none_of(credentials_, &Credential::configured)) return looked();
  looks_.push_back(looked);
  if (overdue_) return answer_looks();
  if (reading_) return;

  std::vector<std::pair<std::string, CredentialKind>> files;
  files.reserve(credentials_.size());
  for (const Credential* credential : credentials_)
    files.emplace_back(credential->path(), credential->kind());
  const auto started = reader_.run([this, box = mailbox(), read = read_, files = std::move(files)] {
    auto reading = std::make_shared<Reading>();
    for (const auto& [path, kind] : files) {
      reading->contents.push_back(path.empty() ? core::Result<std::string>() : read(path, kind));
    }
    box->post([this, reading] { credentials_read(*reading); });
  });
  if (!started) {
    credential_error_ = started.error().wrap("read the credential files").message();
    return answer_looks();
  }
  reading_ = true;
  read_timer_.expires_after(kReadPatience);
  read_timer_.async_wait([this, box = mailbox()](const boost::system::error_code& error) {
    if (error || box->closed() || !reading_ || read_timer_.expiry() > std::chrono::steady_clock::now())
      return;
    overdue_ = true;
    credential_error_ = "the credential files cannot be read: their file system does not answer";
    answer_looks();
  });
}

void GrpcStream::credentials_read(Reading& reading) {
  reading_ = false;
  overdue_ = false;
  read_timer_.cancel();
  credential_error_.clear();
  for (std::size_t i = 0; i < credentials_.size(); ++i) {
    auto& content = reading.contents[i];
    if (!content) {  // what was read before stays in force
      if (credential_error_.empty()) credential_error_ = content.error().message();
      continue;
    }
    if (!credentials_[i]->replace(*content)) continue;
    ++version_;
    if (credentials_[i] != &token_) channel_.reset();
  }
  answer_looks();
}

void GrpcStream::answer_looks() {
  for (const auto& looked : std::exchange(looks_, {})) looked();
}

core::Result<void> GrpcStream::prepare() {
  for (const Credential* credential : credentials_) {
    if (credential->configured() && credential->content().empty()) {
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

core::Result<void> GrpcStream::start(Signal signal, const Bytes& request) {
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
  return {};
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
