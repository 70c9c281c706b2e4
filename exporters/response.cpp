// SPDX-License-Identifier: Apache-2.0
#include "exporters/response.h"

#include <grpcpp/support/status_code_enum.h>

#include <algorithm>
#include <array>

#include "exporters/proto/logs_service.pb.h"
#include "exporters/proto/metrics_service.pb.h"
#include "exporters/proto/rpc_status.pb.h"
#include "exporters/utf8.h"

namespace kvmscope::exporters {
namespace {

namespace logs_pb = opentelemetry::proto::collector::logs::v1;
namespace metrics_pb = opentelemetry::proto::collector::metrics::v1;

constexpr std::string_view kRetryInfoType = "/google.rpc.RetryInfo";
constexpr std::size_t kMaxLine = 300;
constexpr std::size_t kMinSecret = 4;

constexpr std::array<std::string_view, 17> kCodeNames = {
    "OK",        "CANCELLED",       "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
    "NOT_FOUND", "ALREADY_EXISTS",  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED",   "OUT_OF_RANGE",    "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
    "DATA_LOSS", "UNAUTHENTICATED",
};

std::string name_of(int code) {
  if (code >= 0 && static_cast<std::size_t>(code) < kCodeNames.size()) {
    return std::string(kCodeNames[static_cast<std::size_t>(code)]);
  }
  return "status " + std::to_string(code);
}

Attempt::Verdict verdict_of(int code, bool has_retry_info) {
  switch (code) {
    case grpc::StatusCode::CANCELLED:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::OUT_OF_RANGE:
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DATA_LOSS:
      return Attempt::Verdict::retry;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:  // alone it means "too big"
      return has_retry_info ? Attempt::Verdict::retry : Attempt::Verdict::refused;
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::PERMISSION_DENIED:
      return Attempt::Verdict::unauthenticated;
    default:
      return Attempt::Verdict::refused;
  }
}

Attempt partial(std::int64_t rejected, const std::string& message) {
  Attempt attempt;
  if (rejected > 0) {
    attempt.rejected_items = static_cast<std::uint64_t>(rejected);
    attempt.message = "the receiver rejected " + std::to_string(rejected) + " items: " + message;
  } else if (!message.empty()) {
    attempt.message = "the receiver warns: " + message;
  }
  return attempt;
}

}  // namespace

std::optional<std::chrono::milliseconds> retry_delay(const std::string& status_details) {
  rpc::Status status;
  if (status_details.empty() || !status.ParseFromString(status_details)) return std::nullopt;
  for (const auto& detail : status.details()) {
    rpc::RetryInfo info;
    if (!detail.type_url().ends_with(kRetryInfoType) || !info.ParseFromString(detail.value())) continue;
    // A day is beyond every cap, and keeps the arithmetic from overflowing.
    const std::int64_t seconds = std::clamp<std::int64_t>(info.retry_delay().seconds(), 0, 86'400);
    const std::int64_t millis = std::clamp(info.retry_delay().nanos(), 0, 999'999'999) / 1'000'000;
    return std::chrono::milliseconds(seconds * 1000 + millis);
  }
  return std::nullopt;
}

Attempt judge_failure(int code, std::string_view message, const std::string& status_details) {
  Attempt attempt;
  attempt.retry_after = retry_delay(status_details);
  attempt.verdict = verdict_of(code, attempt.retry_after.has_value());
  attempt.message = name_of(code) + ": " + std::string(message);
  return attempt;
}

Attempt judge_response(Signal signal, const std::string& response) {
  Attempt unreadable;
  unreadable.message = "the receiver's answer cannot be read";
  if (signal == Signal::metrics) {
    metrics_pb::ExportMetricsServiceResponse message;
    if (!message.ParseFromString(response)) return unreadable;
    return partial(message.partial_success().rejected_data_points(),
                   message.partial_success().error_message());
  }
  logs_pb::ExportLogsServiceResponse message;
  if (!message.ParseFromString(response)) return unreadable;
  return partial(message.partial_success().rejected_log_records(), message.partial_success().error_message());
}

std::string one_line(std::string text, std::span<const std::string> secrets) {
  for (const std::string& secret : secrets) {
    if (secret.size() < kMinSecret) continue;
    for (std::size_t at = text.find(secret); at != std::string::npos; at = text.find(secret, at + 3)) {
      text.replace(at, secret.size(), "***");
    }
  }
  make_utf8(text);
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  if (text.size() > kMaxLine) {
    text.resize(kMaxLine);
    while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80) text.pop_back();
    if (!text.empty() && static_cast<unsigned char>(text.back()) >= 0x80) text.pop_back();
  }
  return text;
}

}  // namespace kvmscope::exporters
