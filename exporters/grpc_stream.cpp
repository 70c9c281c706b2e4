// SPDX-License-Identifier: Apache-2.0
#include "exporters/grpc_stream.h"

#include <boost/asio/post.hpp>
#include <utility>

#include "exporters/grpc_verdict.h"
#include "exporters/proto/collector_logs.pb.h"
#include "exporters/proto/collector_metrics.pb.h"

namespace kvmscope::exporters {
namespace {

using core::ErrorCode;
using core::fail;
namespace collector = opentelemetry::proto::collector;

constexpr std::chrono::milliseconds kWatchInterval{500};
constexpr const char* kMethods[] = {"/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
                                    "/opentelemetry.proto.collector.logs.v1.LogsService/Export"};

bool legal_header(const std::string& key, const std::string& value) {
  if (key.empty() || key.starts_with("grpc-") || key.starts_with(":") || key == "authorization") return false;
  for (const char c : key) {
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.')) return false;
  }
  if (key.ends_with("-bin")) return false;
  for (const unsigned char c : value) {
    if (c < 0x20 || c > 0x7e) return false;
  }
  return true;
}

bool is_loopback(const std::string& endpoint) {
  const std::string host = endpoint.substr(0, endpoint.rfind(':'));
  return host == "localhost" || host == "[::1]" || host.starts_with("127.");
}

template <typename Response>
SendResult partial_success(const std::string& bytes) {
  SendResult result;
  Response response;
  if (!response.ParseFromString(bytes)) return result;  // taken: an answer that cannot be read changes nothing
  std::int64_t rejected = 0;
  if constexpr (requires { response.partial_success().rejected_data_points(); }) {
    rejected = response.partial_success().rejected_data_points();
  } else {
    rejected = response.partial_success().rejected_log_records();
  }
  result.rejected_items = static_cast<std::uint64_t>(std::max<std::int64_t>(0, rejected));
  result.message = response.partial_success().error_message().substr(0, 200);
  for (char& c : result.message) {
    if (static_cast<unsigned char>(c) < 0x20) c = '?';
  }
  return result;
}

std::string bytes_of(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Valid() || !buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

}  // namespace

struct GrpcStream::Call {
  grpc::ClientContext context;
  grpc::ByteBuffer request;
  grpc::ByteBuffer response;
};

core::Result<std::unique_ptr<Stream>> GrpcStream::open(boost::asio::any_io_executor executor, core::TenantId tenant,
                                                       StreamConfig config) {
  if (config.endpoint.empty()) return fail(ErrorCode::invalid_argument, "endpoint is empty");
  for (const auto& [key, value] : config.headers) {
    if (!legal_header(key, value)) return fail(ErrorCode::invalid_argument, "header \"" + key + "\" is not a legal one");
  }
  if (!config.tls && !config.token_file.empty() && !is_loopback(config.endpoint)) {
    return fail(ErrorCode::invalid_argument, "a token would travel in the clear to " + config.endpoint + ": turn TLS on");
  }
  std::unique_ptr<GrpcStream> stream(new GrpcStream(std::move(executor), std::move(tenant), std::move(config)));
  stream->load_credentials();
  stream->watch_credentials();
  return stream;
}

GrpcStream::GrpcStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config)
    : QueuedStream(executor, std::move(tenant), std::move(config)), watch_(executor) {}

GrpcStream::~GrpcStream() {
  std::unique_lock lock(calls_.mutex);
  for (Call* call : calls_.open) call->context.TryCancel();
  calls_.empty.wait(lock, [this] { return calls_.open.empty(); });
}

void GrpcStream::watch_credentials() {
  watch_.expires_after(kWatchInterval);
  watch_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    if (credentials_fingerprint(config()) != fingerprint_) {
      load_credentials();
      credentials_changed();
    }
    watch_credentials();
  });
}

void GrpcStream::load_credentials() {
  // Taken before reading: a change during the reading is seen at the next look.
  fingerprint_ = credentials_fingerprint(config());
  core::Result<Credentials> loaded = read_credentials(config());
  if (!loaded) {
    credentials_error_ = loaded.error().message();
    credentials_.reset();
    return;
  }
  const bool same_connection = stub_ && credentials_ && credentials_->ca == loaded->ca &&
                               credentials_->cert == loaded->cert && credentials_->key == loaded->key;
  credentials_ = std::move(*loaded);
  if (!same_connection) connect();
}

void GrpcStream::connect() {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, static_cast<int>(config().backoff_min.count()));
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, static_cast<int>(config().backoff_min.count()));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, static_cast<int>(config().backoff_max.count()));
  arguments.SetUserAgentPrefix(std::string("kvmscope/") + KVMSCOPE_VERSION);
  std::shared_ptr<grpc::ChannelCredentials> channel_credentials = grpc::InsecureChannelCredentials();
  if (config().tls) {
    if (!config().server_name.empty()) arguments.SetSslTargetNameOverride(config().server_name);
    channel_credentials = grpc::SslCredentials({.pem_root_certs = credentials_->ca,
                                                .pem_private_key = credentials_->key,
                                                .pem_cert_chain = credentials_->cert});
  }
  stub_ = std::make_unique<grpc::GenericStub>(
      grpc::CreateCustomChannel(config().endpoint, channel_credentials, arguments));
}

void GrpcStream::send(Signal signal, const std::string& request, Reply reply) {
  if (!credentials_) {
    SendResult held{.verdict = SendResult::Verdict::credentials, .retry_after = {}, .message = credentials_error_};
    boost::asio::post(executor(), [reply = std::move(reply), held = std::move(held)] { reply(held); });
    return;
  }
  auto call = std::make_shared<Call>();
  call->context.set_deadline(std::chrono::system_clock::now() + config().timeout);
  if (config().gzip) call->context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  if (!credentials_->token.empty()) call->context.AddMetadata("authorization", "Bearer " + credentials_->token);
  for (const auto& [key, value] : config().headers) call->context.AddMetadata(key, value);
  const grpc::Slice slice(request.data(), request.size());
  call->request = grpc::ByteBuffer(&slice, 1);
  {
    const std::lock_guard lock(calls_.mutex);
    calls_.open.insert(call.get());
  }
  grpc::ClientContext* context = &call->context;
  const char* method = kMethods[signal == Signal::metrics ? 0 : 1];
  stub_->UnaryCall(
      context, method, grpc::StubOptions(), &call->request, &call->response,
      [this, call, signal, reply = std::move(reply)](const grpc::Status& status) {
        SendResult result = verdict_of(status);
        if (status.ok()) {
          const std::string answer = bytes_of(call->response);
          result = signal == Signal::metrics
                       ? partial_success<collector::metrics::v1::ExportMetricsServiceResponse>(answer)
                       : partial_success<collector::logs::v1::ExportLogsServiceResponse>(answer);
        }
        boost::asio::post(executor(), [reply, result = std::move(result)] { reply(result); });
        const std::lock_guard lock(calls_.mutex);
        calls_.open.erase(call.get());
        calls_.empty.notify_all();  // under the lock: the stream may be gone as soon as it is released
      });
}

}  // namespace kvmscope::exporters
