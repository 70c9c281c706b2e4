// SPDX-License-Identifier: Apache-2.0
#include "exporters/stream.h"

#include <utility>

#include "exporters/file_stream.h"
#include "exporters/grpc_stream.h"

namespace kvmscope::exporters {

core::Result<std::unique_ptr<Stream>> Stream::make(boost::asio::any_io_executor executor, core::TenantId tenant,
                                                   StreamConfig config) {
  switch (config.kind) {
    case StreamConfig::Kind::file:
      return std::make_unique<FileStream>(std::move(executor), std::move(tenant), std::move(config));
    case StreamConfig::Kind::otlp_grpc:
      return GrpcStream::open(std::move(executor), std::move(tenant), std::move(config));
  }
  return core::fail(core::ErrorCode::invalid_argument, "no such kind of stream");
}

}  // namespace kvmscope::exporters
