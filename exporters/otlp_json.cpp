// SPDX-License-Identifier: Apache-2.0
#include "exporters/otlp_json.h"

#include <google/protobuf/arena.h>
#include <google/protobuf/util/json_util.h>

#include "exporters/proto/logs_service.pb.h"
#include "exporters/proto/metrics_service.pb.h"

namespace kvmscope::exporters {
namespace {

template <typename Request>
core::Result<std::string> print(const std::string& bytes) {
  google::protobuf::Arena arena;
  auto& request = *google::protobuf::Arena::CreateMessage<Request>(&arena);
  if (!request.ParseFromString(bytes))
    return core::fail(core::ErrorCode::corrupt, "OTLP request: not protobuf");
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_enums_as_ints = true;
  std::string line;
  if (const auto status = google::protobuf::util::MessageToJsonString(request, &line, options);
      !status.ok()) {
    return core::fail(core::ErrorCode::corrupt, "OTLP request as JSON: " + std::string(status.message()));
  }
  line += '\n';
  return line;
}

}  // namespace

core::Result<std::string> otlp_json_line(Signal signal, const std::string& request) {
  namespace collector = opentelemetry::proto::collector;
  return signal == Signal::metrics ? print<collector::metrics::v1::ExportMetricsServiceRequest>(request)
                                   : print<collector::logs::v1::ExportLogsServiceRequest>(request);
}

}  // namespace kvmscope::exporters
