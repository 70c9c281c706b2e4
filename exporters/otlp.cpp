// SPDX-License-Identifier: Apache-2.0
#include "exporters/otlp.h"

#include <google/protobuf/arena.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <numeric>

#include "exporters/proto/logs.pb.h"
#include "exporters/proto/metrics.pb.h"
#include "exporters/utf8.h"

namespace kvmscope::exporters {
namespace {

namespace common_pb = opentelemetry::proto::common::v1;
namespace logs_pb = opentelemetry::proto::logs::v1;
namespace metrics_pb = opentelemetry::proto::metrics::v1;
namespace resource_pb = opentelemetry::proto::resource::v1;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;

constexpr std::string_view kScopeName = "kvmscope";
constexpr std::string_view kSchemaUrl = "https://opentelemetry.io/schemas/1.44.0";
/// Upper bound of HistogramValue::zero.
constexpr double kZeroThreshold = 0x1p-20;
static_assert(core::kHistogramOffset == -20 * (1 << core::kHistogramScale));

// Fields of the request and of what it repeats. ResourceMetrics and ResourceLogs agree in all of them.
constexpr int kRequestResources = 1;
constexpr int kResourceField = 1;
constexpr int kScopeField = 2;
constexpr int kSchemaUrlField = 3;

/// Room for the messages of one scope, kept from call to call: resetting it frees nothing.
class ReusedArena {
 public:
  ReusedArena() : block_(kBytes), arena_(options()) {}
  google::protobuf::Arena& fresh() {
    arena_.Reset();
    return arena_;
  }

 private:
  static constexpr std::size_t kBytes = 128U << 10;
  google::protobuf::ArenaOptions options() {
    google::protobuf::ArenaOptions options;
    options.initial_block = block_.data();
    options.initial_block_size = block_.size();
    return options;
  }
  std::vector<char> block_;
  google::protobuf::Arena arena_;
};

google::protobuf::Arena& fresh_arena() {
  thread_local ReusedArena arena;
  return arena.fresh();
}

void set_string(std::string* field, std::string_view text) {
  field->assign(text);
  make_utf8(*field);
}

void set_value(common_pb::AnyValue& out, const std::variant<std::string, std::int64_t, double, bool>& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    set_string(out.mutable_string_value(), *text);
  } else if (const auto* number = std::get_if<std::int64_t>(&value)) {
    out.set_int_value(*number);
  } else if (const auto* real = std::get_if<double>(&value)) {
    out.set_double_value(*real);
  } else {
    out.set_bool_value(std::get<bool>(value));
  }
}

template <typename Repeated>
void add_attributes(Repeated& out, const std::vector<core::Attribute>& attributes) {
  for (const core::Attribute& attribute : attributes) {
    common_pb::KeyValue& pair = *out.Add();
    set_string(pair.mutable_key(), attribute.key);
    set_value(*pair.mutable_value(), attribute.value);
  }
}

/// What number and histogram points have in common.
template <typename DataPoint>
void fill_common(DataPoint& out, const core::Point& point) {
  for (const core::Point::Label& label : point.labels) {
    common_pb::KeyValue& pair = *out.add_attributes();
    set_string(pair.mutable_key(), label.key);
    set_string(pair.mutable_value()->mutable_string_value(), label.value);
  }
  out.set_start_time_unix_nano(point.start_unix_ns);
  out.set_time_unix_nano(point.time_unix_ns);
}

void fill_number(metrics_pb::NumberDataPoint& out, const core::Point& point) {
  fill_common(out, point);
  const auto* number = std::get_if<std::int64_t>(&point.value);
  const auto* real = std::get_if<double>(&point.value);
  if (point.no_recorded_value || (number == nullptr && real == nullptr)) {
    out.set_flags(metrics_pb::DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK);
  } else if (number != nullptr) {
    out.set_as_int(*number);
  } else {
    out.set_as_double(*real);
  }
}

void fill_histogram(metrics_pb::ExponentialHistogramDataPoint& out, const core::Point& point) {
  fill_common(out, point);
  const auto* held = std::get_if<const core::HistogramValue*>(&point.value);
  const core::HistogramValue* value = held != nullptr ? *held : nullptr;
  if (point.no_recorded_value || value == nullptr) {
    out.set_flags(metrics_pb::DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK);
    return;
  }
  out.set_scale(core::kHistogramScale);
  out.set_sum(static_cast<double>(value->sum_ns) * 1e-9);
  out.set_zero_count(value->zero);
  out.set_zero_threshold(kZeroThreshold);
  const auto filled = [](std::uint64_t bucket) { return bucket != 0; };
  const auto first = std::find_if(value->buckets.begin(), value->buckets.end(), filled);
  const auto last = std::find_if(value->buckets.rbegin(), value->buckets.rend(), filled).base();
  std::uint64_t count = value->zero;
  if (first != value->buckets.end()) {
    auto& positive = *out.mutable_positive();
    positive.set_offset(core::kHistogramOffset + static_cast<int>(first - value->buckets.begin()));
    positive.mutable_bucket_counts()->Add(first, last);
    count = std::accumulate(first, last, count);
  }
  out.set_count(count);
}

void describe(metrics_pb::Metric& metric, const core::Instrument& instrument) {
  set_string(metric.mutable_name(), instrument.name);
  set_string(metric.mutable_unit(), instrument.unit);
  set_string(metric.mutable_description(), instrument.description);
  if (instrument.type == core::InstrumentType::counter) {
    metric.mutable_sum()->set_is_monotonic(true);
    metric.mutable_sum()->set_aggregation_temporality(metrics_pb::AGGREGATION_TEMPORALITY_CUMULATIVE);
  } else if (instrument.type == core::InstrumentType::histogram) {
    metric.mutable_exponential_histogram()->set_aggregation_temporality(
        metrics_pb::AGGREGATION_TEMPORALITY_CUMULATIVE);
  }
}

void add_point(metrics_pb::Metric& metric, const core::Point& point) {
  switch (point.instrument->type) {
    case core::InstrumentType::counter:
      fill_number(*metric.mutable_sum()->add_data_points(), point);
      break;
    case core::InstrumentType::gauge:
      fill_number(*metric.mutable_gauge()->add_data_points(), point);
      break;
    case core::InstrumentType::histogram:
      fill_histogram(*metric.mutable_exponential_histogram()->add_data_points(), point);
      break;
  }
}

void set_scope(common_pb::InstrumentationScope& scope) {
  scope.mutable_name()->assign(kScopeName);
  scope.set_version(KVMSCOPE_VERSION);
}

EncodedScope serialised(const google::protobuf::MessageLite& message) {
  return std::make_shared<const std::string>(message.SerializeAsString());
}

std::string_view severity_text(core::Severity severity) {
  switch (severity) {
    case core::Severity::info:
      return "INFO";
    case core::Severity::warn:
      return "WARN";
    case core::Severity::error:
      return "ERROR";
  }
  return "";
}

/// Bytes of a length-delimited field: tag (one byte for all of ours), length, content.
std::size_t field_size(std::size_t content) {
  return 1 + CodedOutputStream::VarintSize64(content) + content;
}

void write_field(CodedOutputStream& out, int field, std::string_view content) {
  out.WriteTag(WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED));
  out.WriteVarint64(content.size());
  out.WriteRaw(content.data(), static_cast<int>(content.size()));
}

std::size_t resource_size(const std::string& resource, const std::string& scope) {
  return field_size(resource.size()) + field_size(scope.size()) + field_size(kSchemaUrl.size());
}

}  // namespace

EncodedScope encode_metrics(std::span<const core::Point> points) {
  auto& scope = *google::protobuf::Arena::CreateMessage<metrics_pb::ScopeMetrics>(&fresh_arena());
  set_scope(*scope.mutable_scope());
  metrics_pb::Metric* metric = nullptr;
  const core::Instrument* current = nullptr;
  for (const core::Point& point : points) {
    if (metric == nullptr || point.instrument != current) {
      metric = scope.add_metrics();
      current = point.instrument;
      describe(*metric, *current);
    }
    add_point(*metric, point);
  }
  return serialised(scope);
}

EncodedScope encode_logs(std::span<const core::LogRecord> records) {
  auto& scope = *google::protobuf::Arena::CreateMessage<logs_pb::ScopeLogs>(&fresh_arena());
  set_scope(*scope.mutable_scope());
  for (const core::LogRecord& record : records) {
    logs_pb::LogRecord& out = *scope.add_log_records();
    out.set_time_unix_nano(record.time_unix_ns);
    out.set_observed_time_unix_nano(record.time_unix_ns);
    out.set_severity_number(static_cast<logs_pb::SeverityNumber>(record.severity));
    out.mutable_severity_text()->assign(severity_text(record.severity));
    if (!record.body.empty()) set_string(out.mutable_body()->mutable_string_value(), record.body);
    add_attributes(*out.mutable_attributes(), record.attributes);
    set_string(out.mutable_event_name(), record.event_name);
  }
  return serialised(scope);
}

void Batch::add(const core::Resource& resource, const EncodedScope& scope, std::size_t items, Values values) {
  auto& message = *google::protobuf::Arena::CreateMessage<resource_pb::Resource>(&fresh_arena());
  add_attributes(*message.mutable_attributes(), resource.attributes);
  resources_.push_back({message.SerializeAsString(), scope, items, values});
}

std::size_t Batch::items() const {
  return std::accumulate(resources_.begin(), resources_.end(), std::size_t{0},
                         [](std::size_t sum, const Entry& entry) { return sum + entry.items; });
}

std::size_t Batch::size_bytes() const {
  return std::accumulate(resources_.begin(), resources_.end(), std::size_t{0},
                         [](std::size_t sum, const Entry& entry) {
                           return sum + field_size(resource_size(entry.resource, *entry.scope));
                         });
}

std::size_t Batch::finals() const {
  return static_cast<std::size_t>(std::ranges::count(resources_, Values::last, &Entry::values));
}

std::size_t Batch::drop_repeated() {
  const std::size_t before = items();
  std::erase_if(resources_, [](const Entry& entry) { return entry.values == Values::repeated; });
  return before - items();
}

std::vector<Batch::Request> Batch::requests(std::size_t max_bytes) const {
  std::vector<Request> out;
  for (auto entry = resources_.begin(); entry != resources_.end();) {
    std::size_t bytes = 0;
    auto end = entry;
    for (; end != resources_.end(); ++end) {
      const std::size_t size = field_size(resource_size(end->resource, *end->scope));
      if (end != entry && bytes + size > max_bytes) break;
      bytes += size;
    }
    Request& request = out.emplace_back();
    request.bytes.reserve(bytes);
    StringOutputStream sink(&request.bytes);
    CodedOutputStream coded(&sink);
    for (; entry != end; ++entry) {
      coded.WriteTag(WireFormatLite::MakeTag(kRequestResources, WireFormatLite::WIRETYPE_LENGTH_DELIMITED));
      coded.WriteVarint64(resource_size(entry->resource, *entry->scope));
      write_field(coded, kResourceField, entry->resource);
      write_field(coded, kScopeField, *entry->scope);
      write_field(coded, kSchemaUrlField, kSchemaUrl);
      request.items += entry->items;
    }
  }
  return out;
}

}  // namespace kvmscope::exporters
