// SPDX-License-Identifier: Apache-2.0
#include "exporters/otlp.h"

#include <google/protobuf/arena.h>
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>

#include <cmath>
#include <memory>
#include <utility>

#include "exporters/proto/logs.pb.h"
#include "exporters/proto/metrics.pb.h"

namespace kvmscope::exporters {
namespace {

namespace pb = google::protobuf;
namespace otlp_common = opentelemetry::proto::common::v1;
namespace otlp_logs = opentelemetry::proto::logs::v1;
namespace otlp_metrics = opentelemetry::proto::metrics::v1;
namespace otlp_resource = opentelemetry::proto::resource::v1;
using pb::internal::WireFormatLite;

// ResourceMetrics and ResourceLogs, their scopes and the requests around them share these field numbers.
constexpr int kRequestResources = 1;
constexpr int kResource = 1;
constexpr int kScope = 2;

void set_value(const std::variant<std::string, std::int64_t, double, bool>& value, otlp_common::AnyValue* out) {
  if (const auto* text = std::get_if<std::string>(&value)) out->set_string_value(*text);
  if (const auto* integer = std::get_if<std::int64_t>(&value)) out->set_int_value(*integer);
  if (const auto* number = std::get_if<double>(&value)) out->set_double_value(*number);
  if (const auto* flag = std::get_if<bool>(&value)) out->set_bool_value(*flag);
}

void set_attribute(const core::Attribute& attribute, otlp_common::KeyValue* out) {
  out->set_key(attribute.key.data(), attribute.key.size());
  set_value(attribute.value, out->mutable_value());
}

template <typename DataPoint>
void set_common(const core::Point& point, DataPoint* out) {
  for (const core::Point::Label& label : point.labels) {
    otlp_common::KeyValue* attribute = out->add_attributes();
    attribute->set_key(label.key.data(), label.key.size());
    attribute->mutable_value()->set_string_value(label.value.data(), label.value.size());
  }
  out->set_start_time_unix_nano(point.start_unix_ns);
  out->set_time_unix_nano(point.time_unix_ns);
  if (point.no_recorded_value) out->set_flags(otlp_metrics::DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK);
}

void set_number(const core::Point& point, otlp_metrics::NumberDataPoint* out) {
  set_common(point, out);
  if (point.no_recorded_value) return;
  if (const auto* integer = std::get_if<std::int64_t>(&point.value)) out->set_as_int(*integer);
  if (const auto* number = std::get_if<double>(&point.value)) out->set_as_double(*number);
}

void set_histogram(const core::Point& point, otlp_metrics::ExponentialHistogramDataPoint* out) {
  set_common(point, out);
  out->set_scale(core::kHistogramScale);
  const auto* const* view = std::get_if<const core::HistogramValue*>(&point.value);
  if (point.no_recorded_value || view == nullptr || *view == nullptr) return;
  const core::HistogramValue& value = **view;
  out->set_zero_count(value.zero);
  out->set_zero_threshold(std::ldexp(1.0, core::kHistogramOffset / (1 << core::kHistogramScale)));
  out->set_sum(static_cast<double>(value.sum_ns) / 1e9);
  std::size_t first = 0;
  std::size_t end = core::kHistogramBuckets;
  while (first < end && value.buckets[first] == 0) ++first;
  while (end > first && value.buckets[end - 1] == 0) --end;
  std::uint64_t count = value.zero;
  if (first < end) {
    auto* positive = out->mutable_positive();
    positive->set_offset(core::kHistogramOffset + static_cast<int>(first));
    auto* buckets = positive->mutable_bucket_counts();
    buckets->Reserve(static_cast<int>(end - first));
    for (std::size_t i = first; i < end; ++i) {
      buckets->AddAlreadyReserved(value.buckets[i]);
      count += value.buckets[i];
    }
  }
  out->set_count(count);
}

void add_point(const core::Point& point, otlp_metrics::Metric* metric) {
  using Type = core::InstrumentType;
  switch (point.instrument->type) {
    case Type::counter:
      return set_number(point, metric->mutable_sum()->add_data_points());
    case Type::gauge:
      return set_number(point, metric->mutable_gauge()->add_data_points());
    case Type::histogram:
      return set_histogram(point, metric->mutable_exponential_histogram()->add_data_points());
  }
}

void describe(const core::Instrument& instrument, otlp_metrics::Metric* metric) {
  metric->set_name(instrument.name.data(), instrument.name.size());
  metric->set_unit(instrument.unit.data(), instrument.unit.size());
  metric->set_description(instrument.description.data(), instrument.description.size());
  if (instrument.type == core::InstrumentType::counter) {
    metric->mutable_sum()->set_is_monotonic(true);
    metric->mutable_sum()->set_aggregation_temporality(otlp_metrics::AGGREGATION_TEMPORALITY_CUMULATIVE);
  }
  if (instrument.type == core::InstrumentType::histogram) {
    metric->mutable_exponential_histogram()->set_aggregation_temporality(
        otlp_metrics::AGGREGATION_TEMPORALITY_CUMULATIVE);
  }
}

void set_scope(otlp_common::InstrumentationScope* scope) {
  scope->set_name("kvmscope");
  scope->set_version(KVMSCOPE_VERSION);
}

template <typename Message>
EncodedScope serialised(const Message& message) {
  return std::make_shared<const std::string>(message.SerializeAsString());
}

}  // namespace

EncodedScope encode_metrics(std::span<const core::Point> points) {
  // One arena a thread, reset and not freed: a cycle encodes hundreds of VMs of about the same size.
  thread_local pb::Arena arena = [] {
    pb::ArenaOptions options;
    options.start_block_size = 64U << 10;
    options.max_block_size = 1U << 20;
    return pb::Arena(options);
  }();
  auto* scope = pb::Arena::CreateMessage<otlp_metrics::ScopeMetrics>(&arena);
  set_scope(scope->mutable_scope());
  const core::Instrument* current = nullptr;
  otlp_metrics::Metric* metric = nullptr;
  for (const core::Point& point : points) {
    if (point.instrument != current) {
      current = point.instrument;
      metric = scope->add_metrics();
      describe(*current, metric);
    }
    add_point(point, metric);
  }
  EncodedScope encoded = serialised(*scope);
  arena.Reset();
  return encoded;
}

EncodedScope encode_logs(std::span<const core::LogRecord> records) {
  otlp_logs::ScopeLogs scope;
  set_scope(scope.mutable_scope());
  for (const core::LogRecord& record : records) {
    otlp_logs::LogRecord* out = scope.add_log_records();
    out->set_time_unix_nano(record.time_unix_ns);
    out->set_observed_time_unix_nano(record.time_unix_ns);
    out->set_severity_number(static_cast<int>(record.severity));
    out->set_event_name(record.event_name.data(), record.event_name.size());
    if (!record.body.empty()) out->mutable_body()->set_string_value(record.body);
    for (const core::Attribute& attribute : record.attributes) set_attribute(attribute, out->add_attributes());
  }
  return serialised(scope);
}

void Batch::add(const core::Resource& resource, const EncodedScope& scope, std::size_t items) {
  otlp_resource::Resource message;
  for (const core::Attribute& attribute : resource.attributes) set_attribute(attribute, message.add_attributes());
  resources_.push_back({message.SerializeAsString(), scope, items});
}

std::size_t Batch::items() const {
  std::size_t sum = 0;
  for (const Entry& entry : resources_) sum += entry.items;
  return sum;
}

namespace {

std::size_t field_size(int number, std::size_t length) {
  return WireFormatLite::TagSize(number, WireFormatLite::TYPE_BYTES) +
         WireFormatLite::LengthDelimitedSize(length);
}

std::size_t entry_size(const std::string& resource, const std::string& scope) {
  return field_size(kResource, resource.size()) + field_size(kScope, scope.size());
}

void write_header(int number, std::size_t length, pb::io::CodedOutputStream& out) {
  out.WriteTag(WireFormatLite::MakeTag(number, WireFormatLite::WIRETYPE_LENGTH_DELIMITED));
  out.WriteVarint32(static_cast<std::uint32_t>(length));
}

void write_bytes(int number, const std::string& bytes, pb::io::CodedOutputStream& out) {
  write_header(number, bytes.size(), out);
  out.WriteString(bytes);
}

}  // namespace

std::size_t Batch::size_bytes() const {
  std::size_t sum = 0;
  for (const Entry& entry : resources_) {
    sum += field_size(kRequestResources, entry_size(entry.resource, *entry.scope));
  }
  return sum;
}

std::vector<Batch::Request> Batch::requests(std::size_t max_bytes) const {
  std::vector<Request> requests;
  for (const Entry& entry : resources_) {
    const std::size_t body = entry_size(entry.resource, *entry.scope);
    const std::size_t whole = field_size(kRequestResources, body);
    if (requests.empty() || requests.back().bytes.size() + whole > max_bytes) requests.emplace_back();
    Request& request = requests.back();
    pb::io::StringOutputStream sink(&request.bytes);
    pb::io::CodedOutputStream out(&sink);
    write_header(kRequestResources, body, out);
    write_bytes(kResource, entry.resource, out);
    write_bytes(kScope, *entry.scope, out);
    request.items += entry.items;
  }
  return requests;
}

}  // namespace kvmscope::exporters
