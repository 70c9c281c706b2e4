// SPDX-License-Identifier: Apache-2.0
#include "exporters/grpc_verdict.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "exporters/proto/rpc_status.pb.h"

namespace kvmscope::exporters {
namespace {

using Verdict = SendResult::Verdict;
using std::chrono::milliseconds;

/// A server may ask for patience, not for silence.
constexpr milliseconds kLongestRetryAfter{300'000};
constexpr std::size_t kMaxMessage = 200;

constexpr std::array<std::string_view, 17> kCodes = {
    "OK",           "CANCELLED",         "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",        "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL",          "UNAVAILABLE",       "DATA_LOSS",          "UNAUTHENTICATED"};

std::string one_line(std::string_view text) {
  std::string line(text.substr(0, kMaxMessage));
  std::ranges::replace_if(line, [](unsigned char c) { return c < 0x20 || c >= 0x7f; }, '?');
  return line;
}

std::optional<milliseconds> retry_delay(const std::string& details) {
  google::rpc::Status status;
  if (!status.ParseFromString(details)) return std::nullopt;
  for (const auto& detail : status.details()) {
    google::rpc::RetryInfo info;
    if (!detail.Is<google::rpc::RetryInfo>() || !detail.UnpackTo(&info)) continue;
    const std::int64_t seconds = std::clamp<std::int64_t>(info.retry_delay().seconds(), 0, 86'400);
    const milliseconds delay(seconds * 1'000 + std::max(0, info.retry_delay().nanos()) / 1'000'000);
    return std::min(delay, kLongestRetryAfter);
  }
  return std::nullopt;
}

}  // namespace

SendResult verdict_of(const grpc::Status& status) {
  SendResult result;
  if (status.ok()) return result;
  const auto code = static_cast<std::size_t>(status.error_code());
  result.message = std::string(code < kCodes.size() ? kCodes[code] : "UNKNOWN");
  if (!status.error_message().empty()) result.message += ": " + one_line(status.error_message());
  result.retry_after = retry_delay(status.error_details());
  switch (status.error_code()) {
    case grpc::StatusCode::CANCELLED:
    case grpc::StatusCode::DEADLINE_EXCEEDED:
    case grpc::StatusCode::ABORTED:
    case grpc::StatusCode::OUT_OF_RANGE:
    case grpc::StatusCode::UNAVAILABLE:
    case grpc::StatusCode::DATA_LOSS:
      result.verdict = Verdict::retry;
      return result;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      result.verdict = result.retry_after ? Verdict::retry : Verdict::permanent;
      return result;
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::PERMISSION_DENIED:
      result.verdict = Verdict::credentials;
      return result;
    default:
      result.verdict = Verdict::permanent;
      return result;
  }
}

}  // namespace kvmscope::exporters
