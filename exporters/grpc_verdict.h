// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <grpcpp/support/status.h>

#include "exporters/queued_stream.h"

namespace kvmscope::exporters {

/// What an answer means for the request, by OTLP's table of retryable codes: CANCELLED, DEADLINE_EXCEEDED, ABORTED,
/// OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS are tried again; RESOURCE_EXHAUSTED only where the server sent RetryInfo; the
/// credentials' codes hold the request (docs/adr/0004); all others are final. Pure. The message carries the code's
/// name and what the server said, cleaned to one line of at most 200 bytes.
SendResult verdict_of(const grpc::Status& status);

}  // namespace kvmscope::exporters
