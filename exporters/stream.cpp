// SPDX-License-Identifier: Apache-2.0
#include "exporters/stream.h"

#include "exporters/config_check.h"
#include "exporters/file_stream.h"
#include "exporters/grpc_stream.h"

namespace kvmscope::exporters {

core::Result<std::unique_ptr<Stream>> Stream::make(boost::asio::any_io_executor executor,
                                                   core::TenantId tenant, StreamConfig config,
                                                   std::shared_ptr<QueueBudget> budget) {
  if (auto good = check(config); !good) return core::fail(good.error());
  if (config.kind == StreamConfig::Kind::file) {
    return std::make_unique<FileStream>(std::move(executor), std::move(tenant), std::move(config),
                                        std::move(budget));
  }
  return std::make_unique<GrpcStream>(executor, std::move(tenant), std::move(config), std::move(budget));
}

}  // namespace kvmscope::exporters
