// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/exporters/receiver.h"

#include <fcntl.h>
#include <grpcpp/server_builder.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

#include "tests/support/catch.h"

namespace kvmscope::exporters {
namespace {

namespace logs_pb = opentelemetry::proto::collector::logs::v1;
namespace metrics_pb = opentelemetry::proto::collector::metrics::v1;

void shell(const std::string& command) {
  INFO(command);
  REQUIRE(std::system((command + " >/dev/null 2>&1").c_str()) == 0);  // NOLINT(bugprone-command-processor)
}

}  // namespace

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "kvmscope-exporters-XXXXXX").string();
  REQUIRE(::mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::write(const std::string& name, const std::string& content) const {
  const std::string path = file(name);
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  REQUIRE(fd >= 0);
  REQUIRE(::write(fd, content.data(), content.size()) == static_cast<ssize_t>(content.size()));
  ::close(fd);
  return path;
}

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

Authority::Authority(const TempDir& dir, const std::string& name)
    : dir_(dir), key_(dir.file(name + ".ca.key")), file_(dir.file(name + ".ca.pem")) {
  shell("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj '/CN=" + name +
        "' -keyout " + key_ + " -out " + file_);
}

Authority::Pair Authority::issue(const std::string& name) const {
  Pair pair{dir_.file(name + ".pem"), dir_.file(name + ".key")};
  const std::string request = dir_.file(name + ".csr");
  const std::string extensions =
      dir_.write(name + ".ext", "subjectAltName=DNS:localhost,DNS:collector.example,IP:127.0.0.1\n");
  shell("openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj '/CN=" + name + "' -keyout " +
        pair.key_file + " -out " + request);
  shell("openssl x509 -req -days 2 -in " + request + " -CA " + file_ + " -CAkey " + key_ +
        " -CAcreateserial -extfile " + extensions + " -out " + pair.cert_file);
  REQUIRE(::chmod(pair.key_file.c_str(), 0600) == 0);
  return pair;
}

struct Receiver::Metrics final : metrics_pb::MetricsService::Service {
  explicit Metrics(Receiver& owner) : receiver(owner) {}
  grpc::Status Export(grpc::ServerContext* context, const metrics_pb::ExportMetricsServiceRequest* request,
                      metrics_pb::ExportMetricsServiceResponse* response) override {
    Seen seen{Signal::metrics, {}, {}, context->peer()};
    for (const auto& resource : request->resource_metrics()) {
      seen.values.push_back(resource.resource().attributes(0).value().string_value());
    }
    const Answer answer = receiver.handle(*context, std::move(seen));
    if (answer.rejected != 0 || !answer.message.empty()) {
      response->mutable_partial_success()->set_rejected_data_points(answer.rejected);
      response->mutable_partial_success()->set_error_message(answer.message);
    }
    return answer.status;
  }
  Receiver& receiver;
};

struct Receiver::Logs final : logs_pb::LogsService::Service {
  explicit Logs(Receiver& owner) : receiver(owner) {}
  grpc::Status Export(grpc::ServerContext* context, const logs_pb::ExportLogsServiceRequest* request,
                      logs_pb::ExportLogsServiceResponse* response) override {
    Seen seen{Signal::logs, {}, {}, context->peer()};
    for (const auto& resource : request->resource_logs()) {
      seen.values.push_back(resource.resource().attributes(0).value().string_value());
    }
    const Answer answer = receiver.handle(*context, std::move(seen));
    if (answer.rejected != 0) response->mutable_partial_success()->set_rejected_log_records(answer.rejected);
    return answer.status;
  }
  Receiver& receiver;
};

Receiver::Receiver(const Options& options)
    : behaviour_([](const Seen&) { return Answer{}; }),
      metrics_(std::make_unique<Metrics>(*this)),
      logs_(std::make_unique<Logs>(*this)) {
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddListeningPort("127.0.0.1:" + std::to_string(options.port), options.credentials, &port_);
  builder.RegisterService(metrics_.get());
  builder.RegisterService(logs_.get());
  server_ = builder.BuildAndStart();
  REQUIRE(server_ != nullptr);
  REQUIRE(port_ != 0);
}

Receiver::~Receiver() {
  stopping_ = true;
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

void Receiver::behave(Behaviour behaviour) {
  const std::lock_guard lock(mutex_);
  behaviour_ = std::move(behaviour);
}

std::vector<Seen> Receiver::seen() const {
  const std::lock_guard lock(mutex_);
  return seen_;
}

std::set<std::string> Receiver::peers() const {
  std::set<std::string> out;
  for (const Seen& one : seen()) out.insert(one.peer);
  return out;
}

Receiver::Answer Receiver::handle(grpc::ServerContext& context, Seen seen) {
  for (const auto& [key, value] : context.client_metadata()) {
    seen.metadata.emplace(std::string(key.data(), key.size()), std::string(value.data(), value.size()));
  }
  Answer answer;
  {
    const std::lock_guard lock(mutex_);
    seen_.push_back(seen);
    answer = behaviour_(seen);
  }
  const auto until = std::chrono::steady_clock::now() + answer.delay;
  while (std::chrono::steady_clock::now() < until && !context.IsCancelled() && !stopping_) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return answer;
}

std::shared_ptr<grpc::ServerCredentials> tls(const Authority::Pair& pair, const std::string& client_ca_file) {
  grpc::SslServerCredentialsOptions options(client_ca_file.empty()
                                                ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                                : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  if (!client_ca_file.empty()) options.pem_root_certs = slurp(client_ca_file);
  options.pem_key_cert_pairs.push_back({slurp(pair.key_file), slurp(pair.cert_file)});
  return grpc::SslServerCredentials(options);
}

Receiver::Behaviour demand(const std::string& token) {
  return [token](const Seen& seen) {
    Receiver::Answer answer;
    const auto found = seen.metadata.find("authorization");
    if (found == seen.metadata.end() || found->second != "Bearer " + token) {
      // Servers do repeat what they were given.
      answer.status = {grpc::StatusCode::UNAUTHENTICATED,
                       "bad credential: " + (found == seen.metadata.end() ? "none" : found->second)};
    }
    return answer;
  };
}

bool run_until(boost::asio::io_context& io, const std::function<bool()>& condition,
               std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    io.restart();
    io.run_for(std::chrono::milliseconds(5));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

void run_for(boost::asio::io_context& io, std::chrono::milliseconds time) {
  run_until(io, [] { return false; }, time);
}

Batch batch(const std::string& tenant, const std::string& value, Signal signal, std::size_t padding) {
  static constexpr core::Instrument kInstrument{"kvmscope.test", "1", "", core::InstrumentType::counter};
  Batch out(core::TenantId{tenant}, signal);
  core::Resource resource{{{"vm.id", value}}};
  if (padding > 0) resource.attributes.push_back({"padding", std::string(padding, 'x')});
  if (signal == Signal::metrics) {
    const core::Point point{
        .instrument = &kInstrument, .labels = {}, .time_unix_ns = 2, .value = std::int64_t{1}};
    const std::vector<core::Point> points(2, point);
    out.add(resource, encode_metrics(points), points.size());
  } else {
    const core::LogRecord record{.event_name = "test", .body = "test", .attributes = {}};
    const std::vector<core::LogRecord> records(2, record);
    out.add(resource, encode_logs(records), records.size());
  }
  return out;
}

}  // namespace kvmscope::exporters
