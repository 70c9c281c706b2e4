// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "exporters/otlp.h"
#include "hostd/core/result.h"

namespace kvmscope::exporters {

/// A serialised Export*ServiceRequest in OTLP's JSON encoding, on one line that ends with '\n'. Pure.
core::Result<std::string> otlp_json_line(Signal signal, const std::string& request);

}  // namespace kvmscope::exporters
