// SPDX-License-Identifier: Apache-2.0
#include "bpf/process_files.h"

#include <fstream>
#include <sstream>
#include <system_error>

namespace kvmscope::bpf {
namespace {

struct Stat {
  bool ended = false;  ///< a zombie, or on its way to nothing
  std::uint64_t start_ticks = 0;
};

/// Of a process or a thread, by its directory in /proc.
std::optional<Stat> read_stat(const std::filesystem::path& directory) {
  const std::string line = read_line(directory / "stat");
  const std::size_t comm_end = line.rfind(')');  // the comm may hold anything, ')' too
  if (comm_end == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(comm_end + 1));
  Stat stat;
  std::string field;
  for (int number = 3; number <= 22 && fields >> field; ++number) {
    if (number == 3) stat.ended = field == "Z" || field == "X";
    if (number != 22) continue;
    stat.start_ticks = std::stoull(field);
    return stat;
  }
  return std::nullopt;
}

std::filesystem::path directory_of(std::uint32_t tgid) {
  return "/proc/" + std::to_string(tgid);
}

}  // namespace

std::optional<std::uint64_t> process_start_ticks(std::uint32_t tgid) {
  const auto stat = read_stat(directory_of(tgid));
  if (!stat || stat->ended) return std::nullopt;
  return stat->start_ticks;
}

bool process_has_threads(std::uint32_t tgid, std::uint64_t start_ticks) {
  const auto leader = read_stat(directory_of(tgid));
  if (!leader || leader->start_ticks != start_ticks) return false;
  std::error_code gone;
  for (std::filesystem::directory_iterator thread(directory_of(tgid) / "task", gone), end;
       !gone && thread != end; thread.increment(gone)) {
    const auto stat = read_stat(thread->path());
    if (stat && !stat->ended) return true;
  }
  return false;
}

std::string read_line(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace kvmscope::bpf
