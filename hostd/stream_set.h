// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "exporters/stream.h"
#include "hostd/config.h"
#include "hostd/core/ids.h"

namespace kvmscope::hostd {

/// The stream of the operator is bound to this id, which no source of tenancy can yield (it is not a legal
/// one).
inline const core::TenantId kOperator{"\x01operator"};

/// One stream per tenant, made when its first batch is there, and the operator's.
/// Threads: the loop's only.
class StreamSet {
 public:
  using Report = std::function<void(const std::string& what, const core::Error& error)>;

  StreamSet(boost::asio::any_io_executor executor, const Config& config, Report report);

  /// The tenant's stream (or the operator's, for kOperator): made on demand. nullptr if it has none by
  /// configuration, or if it cannot be made now (reported; tried again at the next call).
  exporters::Stream* get(const core::TenantId& tenant);
  /// False if this one is configured to have no stream: nothing needs to be kept for it.
  bool wanted(const core::TenantId& tenant) const;
  /// Ends streams of tenants that are not in `keep` and have nothing queued.
  void retire_except(const std::map<core::TenantId, std::uint32_t>& keep);
  /// Sends what waits; `done` is called once, at the deadline at the latest.
  void flush(std::chrono::milliseconds deadline, std::function<void()> done);

  struct Entry {
    std::unique_ptr<exporters::Stream> stream;
    std::string error;  ///< why there is none
    /// Figures of streams of this tenant that have ended: counters must not fall.
    exporters::StreamStats before;
    exporters::StreamStats stats() const;
  };
  const std::map<core::TenantId, Entry>& entries() const { return entries_; }

 private:
  std::optional<exporters::StreamConfig> config_for(const core::TenantId& tenant) const;

  boost::asio::any_io_executor executor_;
  const Config& config_;
  Report report_;
  std::map<core::TenantId, Entry> entries_;
};

}  // namespace kvmscope::hostd
