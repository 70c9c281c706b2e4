// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace kvmscope::bpf {

/// Start of a living process (field 22 of /proc/PID/stat); nothing if there is none, or only its zombie.
std::optional<std::uint64_t> process_start_ticks(std::uint32_t tgid);

/// Whether a thread of this very process is more than a zombie. Its leader may be one while others are not.
bool process_has_threads(std::uint32_t tgid, std::uint64_t start_ticks);

/// First line of a small file, trimmed; empty if it cannot be read.
std::string read_line(const std::filesystem::path& path);

}  // namespace kvmscope::bpf
