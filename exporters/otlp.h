// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hostd/core/ids.h"
#include "hostd/core/metric.h"

namespace kvmscope::exporters {

/// Which OTLP request a batch is.
enum class Signal : std::uint8_t { metrics, logs };

/// Serialised ScopeMetrics (or ScopeLogs) without their resource: encoded once, sent on several streams.
using EncodedScope = std::shared_ptr<const std::string>;

/// Points -> ScopeMetrics bytes. Points of one instrument must be adjacent; they become one Metric. Pure.
/// Histograms: scale, offset and buckets are copied as they are (leading and trailing empty buckets left
/// out), the sum in seconds.
EncodedScope encode_metrics(std::span<const core::Point> points);
/// Records -> ScopeLogs bytes. Pure.
EncodedScope encode_logs(std::span<const core::LogRecord> records);

/// Whether the next interval's batch says the same again, only newer.
enum class Values : std::uint8_t {
  repeated,  ///< a running VM's cumulative values
  last,      ///< an ended VM's: no other batch has them
};

/// The requests of one interval for one stream: ResourceMetrics (ResourceLogs) ready to be concatenated.
/// Carries the tenant it was made for: a stream refuses another's.
class Batch {
 public:
  Batch(core::TenantId tenant, Signal signal) : tenant_(std::move(tenant)), signal_(signal) {}

  /// Adds one resource with its scope. `items` is the number of points (records) inside.
  void add(const core::Resource& resource, const EncodedScope& scope, std::size_t items,
           Values values = Values::repeated);

  const core::TenantId& tenant() const { return tenant_; }
  Signal signal() const { return signal_; }
  bool empty() const { return resources_.empty(); }
  std::size_t items() const;
  std::size_t size_bytes() const;
  /// Resources with last values.
  std::size_t finals() const;
  bool has_repeated() const { return finals() < resources_.size(); }
  /// Leaves only the last values; returns how many points went.
  std::size_t drop_repeated();

  /// One serialised Export*ServiceRequest, or several where one would exceed max_bytes (a single resource is
  /// never cut). Pure.
  struct Request {
    std::string bytes;
    std::size_t items = 0;
  };
  std::vector<Request> requests(std::size_t max_bytes) const;

 private:
  struct Entry {
    std::string resource;
    EncodedScope scope;
    std::size_t items;
    Values values;
  };
  core::TenantId tenant_;
  Signal signal_;
  std::vector<Entry> resources_;
};

}  // namespace kvmscope::exporters
