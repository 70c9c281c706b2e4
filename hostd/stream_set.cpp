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

StreamSet::StreamSet(boost::asio::any_io_executor executor, const Config& config, Report report)
    : executor_(std::move(executor)), config_(config), report_(std::move(report)) {}

std::optional<exporters::StreamConfig> StreamSet::config_for(const core::TenantId& tenant) const {
  return tenant == kOperator ? config_.operator_stream() : config_.stream_for(tenant);
}

bool StreamSet::wanted(const core::TenantId& tenant) const {
  return config_for(tenant).has_value();
}

exporters::Stream* StreamSet::get(const core::TenantId& tenant) {
  Entry& entry = entries_[tenant];
  if (entry.stream) return entry.stream.get();
  const auto config = config_for(tenant);
  if (!config) return nullptr;
  auto made = exporters::Stream::make(executor_, tenant, *config);
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
  for (auto& [tenant, entry] : entries_) {
    if (tenant == kOperator || keep.contains(tenant) || !entry.stream) continue;
    if (entry.stream->stats().queued_batches > 0) continue;
    entry.before = entry.stats();
    entry.stream.reset();
  }
}

void StreamSet::flush(std::chrono::milliseconds deadline, std::function<void()> done) {
  auto pending = std::make_shared<std::size_t>(1);
  auto one_less = [pending, done = std::move(done)] {
    if (--*pending == 0) done();
  };
  for (auto& [tenant, entry] : entries_) {
    if (!entry.stream) continue;
    ++*pending;
    entry.stream->flush(deadline, one_less);
  }
  one_less();
}

}  // namespace kvmscope::hostd
