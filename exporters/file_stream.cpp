// SPDX-License-Identifier: Apache-2.0
#include "exporters/file_stream.h"

#include <fcntl.h>
#include <google/protobuf/util/json_util.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "exporters/proto/collector_logs.pb.h"
#include "exporters/proto/collector_metrics.pb.h"

namespace kvmscope::exporters {
namespace {

namespace collector = opentelemetry::proto::collector;
using core::Error;
using core::fail;

template <typename Request>
core::Result<std::string> json_line(const std::string& bytes) {
  Request request;
  if (!request.ParseFromString(bytes)) return fail(core::ErrorCode::corrupt, "request cannot be parsed");
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_enums_as_ints = true;  // OTLP's JSON has numbers for enums
  std::string line;
  const auto status = google::protobuf::util::MessageToJsonString(request, &line, options);
  if (!status.ok()) return fail(core::ErrorCode::corrupt, std::string(status.message()));
  line += '\n';
  return line;
}

SendResult failed(const Error& error) {
  return {.verdict = SendResult::Verdict::retry, .retry_after = {}, .message = error.message()};
}

}  // namespace

FileStream::FileStream(boost::asio::any_io_executor executor, core::TenantId tenant, StreamConfig config)
    : QueuedStream(std::move(executor), std::move(tenant), std::move(config)) {}

FileStream::~FileStream() {
  writer_.stop();
  writer_.join();
}

void FileStream::send(Signal signal, const std::string& request, Reply reply) {
  boost::asio::post(writer_, [this, signal, request, reply = std::move(reply)]() mutable {
    boost::asio::post(executor(), [reply = std::move(reply), result = write(signal, request)] { reply(result); });
  });
}

core::Result<void> FileStream::open_file() {
  const std::filesystem::path directory = std::filesystem::path(config().path).parent_path();
  std::error_code error;
  if (!std::filesystem::exists(directory, error)) {
    std::filesystem::create_directories(directory, error);
    if (error) return fail(core::ErrorCode::system, "make " + directory.string() + ": " + error.message());
    ::chmod(directory.c_str(), S_IRWXU);
  }
  const int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
  file_.reset(::open(config().path.c_str(), flags, S_IRUSR | S_IWUSR));
  if (!file_) return fail(Error::from_errno("open " + config().path));
  return {};
}

void FileStream::rotate() const {
  const auto numbered = [this](unsigned number) { return config().path + "." + std::to_string(number); };
  if (config().keep_files == 0) {
    ::unlink(config().path.c_str());
    return;
  }
  for (unsigned number = config().keep_files; number > 1; --number) {
    std::rename(numbered(number - 1).c_str(), numbered(number).c_str());
  }
  std::rename(config().path.c_str(), numbered(1).c_str());
}

SendResult FileStream::write(Signal signal, const std::string& request) {
  const auto line = signal == Signal::metrics
                        ? json_line<collector::metrics::v1::ExportMetricsServiceRequest>(request)
                        : json_line<collector::logs::v1::ExportLogsServiceRequest>(request);
  if (!line) {
    return {.verdict = SendResult::Verdict::permanent, .retry_after = {}, .message = line.error().message()};
  }
  struct stat opened {};
  struct stat named {};
  const bool moved_away = !file_ || ::fstat(file_.get(), &opened) != 0 ||
                          ::stat(config().path.c_str(), &named) != 0 || opened.st_ino != named.st_ino ||
                          opened.st_dev != named.st_dev;
  if (moved_away) {
    if (auto ready = open_file(); !ready) return failed(ready.error());
    if (::fstat(file_.get(), &opened) != 0) return failed(Error::from_errno("stat " + config().path));
  }
  if (opened.st_size > 0 && static_cast<std::uint64_t>(opened.st_size) + line->size() > config().rotate_bytes) {
    rotate();
    if (auto ready = open_file(); !ready) return failed(ready.error());
    opened.st_size = 0;
  }
  std::size_t written = 0;
  while (written < line->size()) {
    const ssize_t step = ::write(file_.get(), line->data() + written, line->size() - written);
    if (step < 0 && errno == EINTR) continue;
    if (step <= 0) {
      const Error error = Error::from_errno("write " + config().path, step < 0 ? errno : ENOSPC);
      if (::ftruncate(file_.get(), opened.st_size) != 0) file_.reset();
      return failed(error);
    }
    written += static_cast<std::size_t>(step);
  }
  return {};
}

}  // namespace kvmscope::exporters
