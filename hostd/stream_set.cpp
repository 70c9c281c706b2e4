// SPDX-License-Identifier: Apache-2.0
#include "hostd/stream_set.h"

#include <utility>

namespace kvmscope::hostd {

exporters::StreamStats StreamSet::Entry::stats() const {
  exporters::StreamStats now = stream ? stream->stats() : exporters::StreamStats{};
  now.sent_items += before.sent_items;
  now.sent_requests += before.sent_requests;
  now.failed_requests += before.failed_requests;
  now.retried_requests += before.retried_requests;
  now.dropped_items_queue += before.dropped_items_queue;
  now.dropped_items_permanent += before.dropped_items_permanent;
  now.rejected_items += before.rejected_items;
  now.auth_failures += before.auth_failures;
  now.refused_batches += before.refused_batches;
  if (!stream) {
    now.healthy = error.empty();
    now.last_error = error;
  }
  return now;
}

StreamSet::StreamSet(boost::asio::any_io_executor executor, const Config& config, const core::Clock& clock,
                     Report report, std::size_t all_queues_bytes)
    : executor_(std::move(executor)),
      config_(config),
      clock_(clock),
      report_(std::move(report)),
      budget_(std::make_shared<exporters::QueueBudget>(all_queues_bytes)) {}

std::optional<exporters::StreamConfig> StreamSet::config_for(const core::TenantId& tenant) const {
  return tenant == kOperator ? config_.operator_stream() : config_.stream_for(tenant);
}

bool StreamSet::wanted(const core::TenantId& tenant) const {
  return config_for(tenant).has_value();
}

exporters::Stream* StreamSet::get(const core::TenantId& tenant) {
  const auto [found, first] = entries_.try_emplace(tenant);
  Entry& entry = found->second;
  if (first) entry.since_unix_ns = clock_.unix_ns();
  if (entry.stream) return entry.stream.get();
  const auto config = config_for(tenant);
  if (!config) return nullptr;
  auto made = exporters::Stream::make(executor_, tenant, *config, budget_);
  if (!made) {
    if (entry.error != made.error().message()) {
      report_("make the stream of " + (tenant == kOperator ? std::string("the operator") : tenant.value),
              made.error());
    }
    entry.error = made.error().message();
    return nullptr;
  }
  entry.error.clear();
  entry.stream = std::move(*made);
  return entry.stream.get();
}

void StreamSet::retire_except(const std::map<core::TenantId, std::uint32_t>& keep) {
  if (flushing_) return;  // each stream has yet to tell what it delivered
  const std::uint64_t now_ns = clock_.monotonic_ns();
  for (auto& [tenant, entry] : entries_) {
    const bool busy = tenant == kOperator || keep.contains(tenant) ||
                      (entry.stream && entry.stream->stats().queued_batches > 0);
    if (busy) {
      entry.idle_since_ns.reset();
      continue;
    }
    if (!entry.idle_since_ns) {  // what it still has to tell about its last batches is told by the next call
      entry.idle_since_ns = now_ns;
      continue;
    }
    if (!entry.stream) continue;
    entry.before = entry.stats();
    entry.stream.reset();
    entry.healthy = true;  // the next one's fate is its own
  }
  std::erase_if(entries_, [now_ns](const auto& entry) {
    const auto& idle_since_ns = entry.second.idle_since_ns;
    return idle_since_ns && std::chrono::nanoseconds(now_ns - *idle_since_ns) >= kForgetAfter;
  });
}

std::vector<StreamSet::Health> StreamSet::changes_of_health() {
  std::vector<Health> changes;
  for (auto& [tenant, entry] : entries_) {
    if (!entry.stream) continue;  // why there is none has been reported
    exporters::StreamStats stats = entry.stream->stats();
    if (std::exchange(entry.healthy, stats.healthy) == stats.healthy) continue;
    changes.push_back({tenant, stats.healthy, stats.healthy ? std::string() : std::move(stats.last_error)});
  }
  return changes;
}

void StreamSet::flush(std::chrono::milliseconds deadline,
                      std::function<void(const std::vector<Undelivered>&)> done) {
  struct Gathering {
    std::size_t pending = 1;
    std::vector<Undelivered> undelivered;
  };
  flushing_ = true;
  auto gathering = std::make_shared<Gathering>();
  auto one_less = [this, gathering, done = std::move(done)] {
    if (--gathering->pending != 0) return;
    flushing_ = false;
    done(gathering->undelivered);
  };
  for (auto& [id, entry] : entries_) {
    if (!entry.stream) continue;
    ++gathering->pending;
    entry.stream->flush(deadline, [gathering, one_less, tenant = id,
                                   stream = entry.stream.get()](const exporters::Undelivered& what) {
      if (what != exporters::Undelivered()) {
        gathering->undelivered.push_back({tenant, what, stream->stats().last_error});
      }
      one_less();
    });
  }
  one_less();
}

}  // namespace kvmscope::hostd
