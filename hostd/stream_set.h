// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "exporters/stream.h"
#include "hostd/config.h"
#include "hostd/core/clock.h"
#include "hostd/core/ids.h"

namespace kvmscope::hostd {

/// The stream of the operator is bound to this id, which no source of tenancy can yield (it is not a legal
/// one).
inline const core::TenantId kOperator{"\x01operator"};

/// One stream per tenant, made when its first batch is there, and the operator's. Together they queue at most
/// `all_queues_bytes`.
/// Threads: the loop's only.
class StreamSet {
 public:
  using Report = std::function<void(const std::string& what, const core::Error& error)>;

  /// How long a tenant without VMs and with nothing queued is remembered: its self-metrics end then.
  static constexpr std::chrono::minutes kForgetAfter{10};

  StreamSet(boost::asio::any_io_executor executor, const Config& config, const core::Clock& clock,
            Report report, std::size_t all_queues_bytes = exporters::kAllQueuesBytes);

  /// The tenant's stream (or the operator's, for kOperator): made on demand. nullptr if it has none by
  /// configuration, or if it cannot be made now (reported; tried again at the next call).
  exporters::Stream* get(const core::TenantId& tenant);
  /// False if this one is configured to have no stream: nothing needs to be kept for it.
  bool wanted(const core::TenantId& tenant) const;
  /// Ends streams of tenants that were neither in `keep` nor had anything queued at the last call and now;
  /// forgets those tenants after a while. Does nothing during flush().
  void retire_except(const std::map<core::TenantId, std::uint32_t>& keep);

  struct Health {
    core::TenantId tenant;
    bool healthy = true;
    std::string error;  ///< why not; one line, no secret
  };
  /// Streams that have fallen ill or recovered since the last call.
  std::vector<Health> changes_of_health();

  struct Undelivered {
    core::TenantId tenant;
    exporters::Undelivered what;
    std::string last_error;  ///< of the stream; may be empty
  };
  /// Sends what waits; `done` is called once, at the deadline at the latest, with what was not delivered by
  /// the streams of which something was not.
  void flush(std::chrono::milliseconds deadline, std::function<void(const std::vector<Undelivered>&)> done);

  struct Entry {
    std::unique_ptr<exporters::Stream> stream;
    std::string error;  ///< why there is none
    /// Figures of streams of this tenant that have ended: counters must not fall.
    exporters::StreamStats before;
    std::uint64_t since_unix_ns = 0;  ///< the counters' start: a tenant that was forgotten begins anew
    bool healthy = true;              ///< as last told by changes_of_health()
    std::optional<std::uint64_t> idle_since_ns;  ///< nothing to do for this tenant (CLOCK_MONOTONIC)
    exporters::StreamStats stats() const;
  };
  const std::map<core::TenantId, Entry>& entries() const { return entries_; }

 private:
  std::optional<exporters::StreamConfig> config_for(const core::TenantId& tenant) const;

  boost::asio::any_io_executor executor_;
  const Config& config_;
  const core::Clock& clock_;
  Report report_;
  std::shared_ptr<exporters::QueueBudget> budget_;
  std::map<core::TenantId, Entry> entries_;
  bool flushing_ = false;
};

}  // namespace kvmscope::hostd
