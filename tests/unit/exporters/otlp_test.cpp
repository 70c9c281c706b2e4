// SPDX-License-Identifier: Apache-2.0
#include "exporters/otlp.h"

#include <cmath>
#include <cstring>
#include <optional>

#include "exporters/proto/logs_service.pb.h"
#include "exporters/proto/metrics_service.pb.h"
#include "tests/support/catch.h"

namespace kvmscope::exporters {
namespace {

namespace metrics_pb = opentelemetry::proto::metrics::v1;
using core::Instrument;
using core::InstrumentType;
using core::Point;

constexpr Instrument kOperations{"kvmscope.vm.disk.storage.operations", "{operation}", "How many.",
                                 InstrumentType::counter};
constexpr Instrument kCpu{"kvmscope.vm.cpu.time", "s", "How long.", InstrumentType::counter};
constexpr Instrument kDepth{"kvmscope.vm.disk.queue.depth", "1", "How deep.", InstrumentType::gauge};
constexpr Instrument kLatency{"kvmscope.vm.disk.storage.duration", "s", "How slow.",
                              InstrumentType::histogram};

Point point(const Instrument& instrument, decltype(Point::value) value) {
  return {.instrument = &instrument, .labels = {}, .start_unix_ns = 1, .time_unix_ns = 2, .value = value};
}

metrics_pb::ScopeMetrics parsed(const EncodedScope& scope) {
  metrics_pb::ScopeMetrics out;
  REQUIRE(out.ParseFromString(*scope));
  return out;
}

/// A reader of the wire format that knows no schema: what the field numbers are is written in the tests, by
/// hand.
struct Field {
  unsigned number = 0;
  unsigned type = 0;
  std::uint64_t integer = 0;  ///< varint, fixed64 or fixed32
  std::string bytes;
  double real() const {
    double out = 0;
    std::memcpy(&out, &integer, sizeof out);
    return out;
  }
  std::int64_t zigzag() const {
    return static_cast<std::int64_t>(integer >> 1) ^ -static_cast<std::int64_t>(integer & 1);
  }
};

std::uint64_t varint(const std::string& in, std::size_t& at) {
  std::uint64_t out = 0;
  for (unsigned shift = 0;; shift += 7) {
    const auto byte = static_cast<unsigned char>(in.at(at++));
    out |= std::uint64_t{byte & 0x7FU} << shift;
    if ((byte & 0x80) == 0) return out;
  }
}

std::vector<Field> fields(const std::string& in) {
  std::vector<Field> out;
  for (std::size_t at = 0; at < in.size();) {
    const std::uint64_t tag = varint(in, at);
    Field field{static_cast<unsigned>(tag >> 3), static_cast<unsigned>(tag & 7), 0, {}};
    if (field.type == 0) field.integer = varint(in, at);
    if (field.type == 1 || field.type == 5) {
      const std::size_t size = field.type == 1 ? 8 : 4;
      REQUIRE(at + size <= in.size());
      std::memcpy(&field.integer, in.data() + at, size);
      at += size;
    }
    if (field.type == 2) {
      const std::uint64_t size = varint(in, at);
      REQUIRE(at + size <= in.size());
      field.bytes = in.substr(at, size);
      at += size;
    }
    out.push_back(std::move(field));
  }
  return out;
}

Field only(const std::string& in, unsigned number) {
  std::optional<Field> found;
  for (Field& field : fields(in)) {
    if (field.number != number) continue;
    REQUIRE_FALSE(found.has_value());
    found = std::move(field);
  }
  INFO("field " << number);
  REQUIRE(found.has_value());
  return *found;
}

bool has(const std::string& in, unsigned number) {
  for (const Field& field : fields(in)) {
    if (field.number == number) return true;
  }
  return false;
}

TEST_CASE("each number becomes the point its instrument and type ask for") {
  struct Row {
    const Instrument* instrument;
    decltype(Point::value) value;
    metrics_pb::Metric::DataCase data;
    metrics_pb::NumberDataPoint::ValueCase type;
  };
  const std::vector<Row> rows = {
      {&kOperations, std::int64_t{7}, metrics_pb::Metric::kSum, metrics_pb::NumberDataPoint::kAsInt},
      {&kOperations, std::int64_t{0}, metrics_pb::Metric::kSum, metrics_pb::NumberDataPoint::kAsInt},
      {&kCpu, 1.5, metrics_pb::Metric::kSum, metrics_pb::NumberDataPoint::kAsDouble},
      {&kDepth, std::int64_t{-3}, metrics_pb::Metric::kGauge, metrics_pb::NumberDataPoint::kAsInt},
      {&kDepth, 0.0, metrics_pb::Metric::kGauge, metrics_pb::NumberDataPoint::kAsDouble},
  };
  for (const Row& row : rows) {
    Point one = point(*row.instrument, row.value);
    one.labels = {{"disk.device", "vda"}};
    const auto scope = parsed(encode_metrics({&one, 1}));
    REQUIRE(scope.metrics_size() == 1);
    const auto& metric = scope.metrics(0);
    REQUIRE(metric.data_case() == row.data);
    REQUIRE(metric.name() == row.instrument->name);
    REQUIRE(metric.unit() == row.instrument->unit);
    REQUIRE(metric.description() == row.instrument->description);
    const bool sum = row.data == metrics_pb::Metric::kSum;
    const auto& data = sum ? metric.sum().data_points(0) : metric.gauge().data_points(0);
    REQUIRE(data.value_case() == row.type);
    REQUIRE(data.flags() == 0);
    REQUIRE(data.start_time_unix_nano() == 1);
    REQUIRE(data.time_unix_nano() == 2);
    REQUIRE(data.attributes(0).key() == "disk.device");
    REQUIRE(data.attributes(0).value().string_value() == "vda");
    if (!sum) continue;
    REQUIRE(metric.sum().is_monotonic());
    REQUIRE(metric.sum().aggregation_temporality() == metrics_pb::AGGREGATION_TEMPORALITY_CUMULATIVE);
  }
}

TEST_CASE("adjacent points of one instrument share a metric") {
  const std::vector<Point> points = {point(kOperations, std::int64_t{1}), point(kOperations, std::int64_t{2}),
                                     point(kCpu, 1.0)};
  const auto scope = parsed(encode_metrics(points));
  REQUIRE(scope.metrics_size() == 2);
  REQUIRE(scope.metrics(0).sum().data_points_size() == 2);
  REQUIRE(scope.metrics(0).sum().data_points(1).as_int() == 2);
  REQUIRE(scope.scope().name() == "kvmscope");
  REQUIRE_FALSE(scope.scope().version().empty());
}

TEST_CASE("a histogram is copied without its empty ends, and its count is the sum of its buckets") {
  struct Row {
    std::vector<std::pair<std::size_t, std::uint64_t>> filled;
    std::uint64_t zero;
    int offset;
    std::vector<std::uint64_t> buckets;
  };
  const std::vector<Row> rows = {
      {{{0, 1}}, 0, -80, {1}},
      {{{107, 9}}, 0, 27, {9}},
      {{{5, 2}, {7, 3}}, 4, -75, {2, 0, 3}},
      {{{0, 1}, {107, 1}}, 0, -80, {}},  // the whole range
      {{}, 6, 0, {}},
      {{}, 0, 0, {}},
  };
  for (const Row& row : rows) {
    core::HistogramValue value;
    value.zero = row.zero;
    value.sum_ns = 1'500'000'000;
    for (const auto& [index, count] : row.filled) value.buckets[index] = count;
    const Point one = point(kLatency, &value);
    const auto scope = parsed(encode_metrics({&one, 1}));
    const auto& histogram = scope.metrics(0).exponential_histogram();
    REQUIRE(histogram.aggregation_temporality() == metrics_pb::AGGREGATION_TEMPORALITY_CUMULATIVE);
    const auto& data = histogram.data_points(0);
    REQUIRE(data.scale() == 2);
    REQUIRE(data.zero_count() == row.zero);
    REQUIRE(data.zero_threshold() == std::ldexp(1.0, -20));
    REQUIRE(data.has_sum());
    REQUIRE(data.sum() == Approx(1.5).epsilon(1e-12));
    REQUIRE(data.count() == value.count());
    REQUIRE(data.has_positive() == !row.filled.empty());
    REQUIRE(data.positive().offset() == row.offset);
    const std::vector<std::uint64_t> buckets(data.positive().bucket_counts().begin(),
                                             data.positive().bucket_counts().end());
    if (row.filled.size() == 2 && row.buckets.empty()) {
      REQUIRE(buckets.size() == core::kHistogramBuckets);
    } else {
      REQUIRE(buckets == row.buckets);
    }
  }
}

TEST_CASE("the end of a series, and a value that is not there, carry the flag and nothing else") {
  core::HistogramValue value;
  value.zero = 3;
  Point ended = point(kLatency, &value);
  ended.no_recorded_value = true;
  const Point missing = point(kLatency, static_cast<const core::HistogramValue*>(nullptr));
  for (const Point& one : {ended, missing}) {
    const auto scope = parsed(encode_metrics({&one, 1}));
    const auto& data = scope.metrics(0).exponential_histogram().data_points(0);
    REQUIRE(data.flags() == 1);
    REQUIRE_FALSE(data.has_sum());
    REQUIRE(data.count() == 0);
    REQUIRE(data.time_unix_nano() == 2);
  }
  Point number = point(kOperations, std::int64_t{7});
  number.no_recorded_value = true;
  const auto scope = parsed(encode_metrics({&number, 1}));
  const auto& data = scope.metrics(0).sum().data_points(0);
  REQUIRE(data.flags() == 1);
  REQUIRE(data.value_case() == metrics_pb::NumberDataPoint::VALUE_NOT_SET);
}

TEST_CASE("the field numbers of a sum are OTLP's, read without our schema") {
  Point one = point(kOperations, std::int64_t{-2});
  one.labels = {{"k", "v"}};
  one.start_unix_ns = 0x0102030405060708;
  const std::string scope = *encode_metrics({&one, 1});
  REQUIRE(only(only(scope, 1).bytes, 1).bytes == "kvmscope");
  const std::string metric = only(scope, 2).bytes;
  REQUIRE(only(metric, 1).bytes == kOperations.name);
  REQUIRE(only(metric, 2).bytes == kOperations.description);
  REQUIRE(only(metric, 3).bytes == kOperations.unit);
  const std::string sum = only(metric, 7).bytes;
  REQUIRE(only(sum, 2).integer == 2);
  REQUIRE(only(sum, 3).integer == 1);
  const std::string data = only(sum, 1).bytes;
  REQUIRE(only(data, 2).type == 1);
  REQUIRE(only(data, 2).integer == 0x0102030405060708);
  REQUIRE(only(data, 3).integer == 2);
  REQUIRE(only(data, 6).type == 1);
  REQUIRE(static_cast<std::int64_t>(only(data, 6).integer) == -2);
  REQUIRE_FALSE(has(data, 4));
  // KeyValue{key=1: "k", value=2: AnyValue{string=1: "v"}}, to the byte
  REQUIRE(only(data, 7).bytes == std::string("\x0A\x01k\x12\x03\x0A\x01v"));
  one.value = 2.5;
  const std::string real = only(only(only(*encode_metrics({&one, 1}), 2).bytes, 7).bytes, 1).bytes;
  REQUIRE(only(real, 4).real() == 2.5);
  one.no_recorded_value = true;
  const std::string ended = only(only(only(*encode_metrics({&one, 1}), 2).bytes, 7).bytes, 1).bytes;
  REQUIRE(only(ended, 8).integer == 1);
}

TEST_CASE("the field numbers of a gauge and an exponential histogram are OTLP's") {
  const Point gauge = point(kDepth, std::int64_t{4});
  REQUIRE(only(only(only(*encode_metrics({&gauge, 1}), 2).bytes, 5).bytes, 1).bytes.size() > 0);

  core::HistogramValue value;
  value.sum_ns = 2'000'000'000;
  value.zero = 1;
  value.buckets[10] = 300;
  value.buckets[11] = 1;
  Point one = point(kLatency, &value);
  one.labels = {{"k", "v"}};
  const std::string histogram = only(only(*encode_metrics({&one, 1}), 2).bytes, 10).bytes;
  REQUIRE(only(histogram, 2).integer == 2);
  const std::string data = only(histogram, 1).bytes;
  REQUIRE(only(data, 1).bytes == std::string("\x0A\x01k\x12\x03\x0A\x01v"));
  REQUIRE(only(data, 2).type == 1);
  REQUIRE(only(data, 3).type == 1);
  REQUIRE(only(data, 4).type == 1);
  REQUIRE(only(data, 4).integer == 302);
  REQUIRE(only(data, 5).real() == 2.0);
  REQUIRE(only(data, 6).zigzag() == 2);
  REQUIRE(only(data, 7).type == 1);
  REQUIRE(only(data, 7).integer == 1);
  REQUIRE(only(data, 14).real() == std::ldexp(1.0, -20));
  const std::string positive = only(data, 8).bytes;
  REQUIRE(only(positive, 1).zigzag() == -70);
  REQUIRE(only(positive, 2).bytes == std::string("\xAC\x02\x01"));  // packed varints 300, 1
}

TEST_CASE("the field numbers of a log record are OTLP's") {
  const core::LogRecord record{.event_name = "disk.error",
                               .severity = core::Severity::error,
                               .time_unix_ns = 99,
                               .body = "sector 5",
                               .attributes = {{"n", std::int64_t{-1}}, {"d", 0.5}, {"b", true}}};
  const std::string log = only(*encode_logs({&record, 1}), 2).bytes;
  REQUIRE(only(log, 1).integer == 99);
  REQUIRE(only(log, 1).type == 1);
  REQUIRE(only(log, 2).integer == 17);
  REQUIRE(only(log, 3).bytes == "ERROR");
  REQUIRE(only(only(log, 5).bytes, 1).bytes == "sector 5");
  REQUIRE(only(log, 11).integer == 99);
  REQUIRE(only(log, 11).type == 1);
  REQUIRE(only(log, 12).bytes == "disk.error");
  std::vector<std::string> values;
  for (const Field& field : fields(log)) {
    if (field.number == 6) values.push_back(only(field.bytes, 2).bytes);
  }
  REQUIRE(values.size() == 3);
  REQUIRE(static_cast<std::int64_t>(only(values[0], 3).integer) == -1);
  REQUIRE(only(values[1], 4).real() == 0.5);
  REQUIRE(only(values[2], 2).integer == 1);
}

Batch batch_of(std::size_t resources, const EncodedScope& scope, Signal signal = Signal::metrics) {
  Batch batch(core::TenantId{"blue"}, signal);
  for (std::size_t i = 0; i < resources; ++i) {
    batch.add({{{"vm.id", "vm-" + std::to_string(i)}}}, scope, 3);
  }
  return batch;
}

TEST_CASE("a request holds its resources with scope and schema, at OTLP's field numbers") {
  const Point one = point(kOperations, std::int64_t{1});
  const EncodedScope scope = encode_metrics({&one, 1});
  const Batch batch = batch_of(2, scope);
  REQUIRE(batch.items() == 6);
  const auto requests = batch.requests(1 << 20);
  REQUIRE(requests.size() == 1);
  REQUIRE(requests[0].items == 6);
  REQUIRE(requests[0].bytes.size() == batch.size_bytes());
  const auto resources = fields(requests[0].bytes);
  REQUIRE(resources.size() == 2);
  REQUIRE(resources[1].number == 1);
  const std::string attribute = only(only(resources[1].bytes, 1).bytes, 1).bytes;
  REQUIRE(only(attribute, 1).bytes == "vm.id");
  REQUIRE(only(only(attribute, 2).bytes, 1).bytes == "vm-1");
  REQUIRE(only(resources[1].bytes, 2).bytes == *scope);
  REQUIRE(only(resources[1].bytes, 3).bytes.starts_with("https://opentelemetry.io/schemas/"));

  opentelemetry::proto::collector::metrics::v1::ExportMetricsServiceRequest message;
  REQUIRE(message.ParseFromString(requests[0].bytes));
  REQUIRE(message.resource_metrics(0).scope_metrics(0).metrics(0).sum().data_points(0).as_int() == 1);
}

TEST_CASE("logs are concatenated alike") {
  const core::LogRecord record{.event_name = "vm.start", .body = "x", .attributes = {}};
  const auto requests = batch_of(1, encode_logs({&record, 1}), Signal::logs).requests(1 << 20);
  opentelemetry::proto::collector::logs::v1::ExportLogsServiceRequest message;
  REQUIRE(message.ParseFromString(requests[0].bytes));
  REQUIRE(message.resource_logs(0).scope_logs(0).log_records(0).event_name() == "vm.start");
}

TEST_CASE("requests are cut between resources, and a resource is never cut") {
  const Point one = point(kOperations, std::int64_t{1});
  const Batch batch = batch_of(10, encode_metrics({&one, 1}));
  const std::size_t single = batch_of(1, encode_metrics({&one, 1})).size_bytes();
  for (const std::size_t limit :
       {std::size_t{1}, single - 1, single, 3 * single, 3 * single + 1, 10 * single}) {
    std::string all;
    std::size_t items = 0;
    const auto requests = batch.requests(limit);
    for (const auto& request : requests) {
      REQUIRE((request.bytes.size() <= limit || request.bytes.size() == single));
      all += request.bytes;
      items += request.items;
    }
    const std::size_t per_request = std::max<std::size_t>(1, limit / single);
    REQUIRE(requests.size() == (10 + per_request - 1) / per_request);
    REQUIRE(items == 30);
    REQUIRE(all == batch.requests(1 << 20)[0].bytes);
  }
  REQUIRE(Batch(core::TenantId{"blue"}, Signal::metrics).requests(1000).empty());
}

TEST_CASE("bytes that are no UTF-8 do not spoil a request") {
  struct Row {
    std::string in;
    std::string out;
  };
  const std::vector<Row> rows = {
      {"plain", "plain"},
      {"gr\xC3\xBC\xC3\x9F", "gr\xC3\xBC\xC3\x9F"},
      {"\xE2\x82\xAC \xF0\x9F\x98\x80", "\xE2\x82\xAC \xF0\x9F\x98\x80"},
      {"a\xFFz", "a?z"},
      {"cut \xE2\x82", "cut ??"},
      {"overlong \xC0\xAF", "overlong ??"},
      {"surrogate \xED\xA0\x80", "surrogate ???"},
      {"beyond \xF4\x90\x80\x80", "beyond ????"},
  };
  for (const Row& row : rows) {
    Point one = point(kOperations, std::int64_t{1});
    one.labels = {{"disk.device", row.in}};
    const auto scope = parsed(encode_metrics({&one, 1}));
    REQUIRE(scope.metrics(0).sum().data_points(0).attributes(0).value().string_value() == row.out);
  }
}

}  // namespace
}  // namespace kvmscope::exporters
