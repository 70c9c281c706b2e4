// SPDX-License-Identifier: Apache-2.0
#include "bpf/process_files.h"

#include <fstream>
#include <sstream>

namespace kvmscope::bpf {

std::optional<std::uint64_t> process_start_ticks(std::uint32_t tgid) {
  const std::string line = read_line("/proc/" + std::to_string(tgid) + "/stat");
  const std::size_t comm_end = line.rfind(')');  // the comm may hold anything, ')' too
  if (comm_end == std::string::npos) return std::nullopt;
  std::istringstream fields(line.substr(comm_end + 1));
  std::string field;
  for (int number = 3; number <= 22 && fields >> field; ++number) {
    if (number == 3 && (field == "Z" || field == "X")) return std::nullopt;
    if (number == 22) return std::stoull(field);
  }
  return std::nullopt;
}

std::string read_line(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace kvmscope::bpf
