// SPDX-License-Identifier: Apache-2.0
// Any bytes are either a configuration whose streams stay where they belong, or errors of one printable line
// each.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "hostd/config.h"

namespace {

using kvmscope::core::TenantId;

void require(bool condition) {
  if (!condition) std::abort();
}

bool is_printable(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return c >= 0x20 && c < 0x7f; });
}

void check_stream(const kvmscope::hostd::Config& config, const TenantId& tenant) {
  const auto stream = config.stream_for(tenant);
  if (!stream) return;
  if (stream->kind == kvmscope::exporters::StreamConfig::Kind::file) {
    require(stream->path.starts_with('/'));
    require(stream->path.find("/../") == std::string::npos && !stream->path.ends_with("/.."));
    require(
        stream->path !=
        config.stream_for(TenantId{tenant.value + "x"}).value_or(kvmscope::exporters::StreamConfig()).path);
  }
  for (const auto& [name, value] : stream->headers) require(is_printable(name) && is_printable(value));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Bytes and chars may alias.
  const auto config = kvmscope::hostd::parse_config({reinterpret_cast<const char*>(data), size}, "fuzz.yaml");
  if (!config) {
    require(!config.error().empty());
    for (const auto& error : config.error()) require(is_printable(to_string(error)));
    return 0;
  }
  check_stream(*config, TenantId{"../a\r\nb"});
  for (const auto& [tenant, own] : config->overrides) check_stream(*config, tenant);
  return 0;
}
