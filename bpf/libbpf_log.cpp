// SPDX-License-Identifier: Apache-2.0
#include "bpf/libbpf_log.h"

#include <bpf/libbpf.h>

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <vector>

namespace kvmscope::bpf {
namespace {

/// Verifier logs run to megabytes; their end is what counts.
constexpr std::size_t kKeptBytes = 16384;

std::string& text() {
  thread_local std::string kept;
  return kept;
}

int keep(libbpf_print_level level, const char* format, va_list arguments) noexcept {
  if (level == LIBBPF_DEBUG) return 0;
  va_list again;
  va_copy(again, arguments);
  const int size = std::vsnprintf(nullptr, 0, format, arguments);
  if (size > 0) {
    std::string line(static_cast<std::size_t>(size) + 1, '\0');
    std::vsnprintf(line.data(), line.size(), format, again);
    line.pop_back();
    std::string& kept = text();
    kept += line.size() > kKeptBytes ? line.substr(line.size() - kKeptBytes) : line;
    if (kept.size() > 2 * kKeptBytes) kept.erase(0, kept.size() - kKeptBytes);
  }
  va_end(again);
  return size;
}

}  // namespace

LibbpfLog::LibbpfLog() {
  static std::once_flag once;
  // libbpf has one print function for all threads; each collects its own.
  std::call_once(once, [] { libbpf_set_print(keep); });
  text().clear();
}

LibbpfLog::~LibbpfLog() {
  text().clear();
}

std::string LibbpfLog::last_lines(int count) const {
  std::vector<std::string> lines(1);
  for (const char c : text()) {
    if (c != '\n')
      lines.back() += c;
    else if (!lines.back().empty())
      lines.emplace_back();
  }
  if (lines.back().empty()) lines.pop_back();
  std::string out;
  const std::size_t first = lines.size() - std::min(lines.size(), static_cast<std::size_t>(count));
  for (std::size_t i = first; i < lines.size(); ++i) out += (out.empty() ? "" : " | ") + lines[i];
  return out;
}

}  // namespace kvmscope::bpf
