// SPDX-License-Identifier: Apache-2.0
#include "virt/processes.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <climits>
#include <filesystem>
#include <optional>
#include <sstream>
#include <system_error>

#include "virt/cgroups.h"
#include "virt/files.h"
#include "virt/libvirt_source.h"

namespace kvmscope::virt {
namespace {

std::string proc_path(const std::string& proc_root, std::uint32_t pid, std::string_view leaf) {
  return proc_root + "/" + std::to_string(pid) + "/" + std::string(leaf);
}

std::optional<std::uint32_t> parse_pid(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back())) != 0) text.remove_suffix(1);
  std::uint32_t pid = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), pid);
  if (error != std::errc() || end != text.data() + text.size() || pid == 0) return std::nullopt;
  return pid;
}

std::vector<std::uint32_t> all_pids(const std::string& proc_root) {
  std::vector<std::uint32_t> pids;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(proc_root, error), end; !error && entry != end;
       entry.increment(error)) {
    if (const auto pid = parse_pid(entry->path().filename().string())) pids.push_back(*pid);
  }
  return pids;
}

/// The rest of the line of /proc/PID/status that begins with `key` (which ends in a colon).
std::string status_line(const std::string& status, const std::string& key) {
  std::istringstream lines(status);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(key)) return line.substr(key.size());
  return {};
}

std::optional<std::uint32_t> first_number(std::string_view text) {
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() ? std::optional(number) : std::nullopt;
}

std::size_t count_words(const std::string& text) {
  std::istringstream words(text);
  std::size_t count = 0;
  for (std::string word; words >> word;) ++count;
  return count;
}

/// QEMU's options write a comma inside a value as two.
std::string first_option_value(std::string_view options) {
  std::string value;
  for (std::size_t i = 0; i < options.size(); ++i) {
    if (options[i] == ',') {
      if (i + 1 == options.size() || options[i + 1] != ',') break;
      ++i;
    }
    value += options[i];
  }
  return value;
}

std::string guest_name(std::string_view options) {
  constexpr std::string_view kGuest = "guest=";
  if (options.starts_with(kGuest)) return first_option_value(options.substr(kGuest.size()));
  const auto at = options.find(",guest=");
  if (at != std::string_view::npos) return first_option_value(options.substr(at + 1 + kGuest.size()));
  return first_option_value(options);
}

std::string executable_name(const std::string& proc_root, std::uint32_t pid) {
  std::array<char, PATH_MAX> target;
  const ssize_t length = ::readlink(proc_path(proc_root, pid, "exe").c_str(), target.data(), target.size());
  if (length <= 0) return {};
  std::string_view path(target.data(), static_cast<std::size_t>(length));
  constexpr std::string_view kDeleted = " (deleted)";  // replaced by an upgrade while it runs
  if (path.ends_with(kDeleted)) path.remove_suffix(kDeleted.size());
  return std::string(path.substr(path.rfind('/') + 1));
}

bool matches(const std::string& name, const std::string& pattern) {
  if (pattern.ends_with('*')) return name.starts_with(pattern.substr(0, pattern.size() - 1));
  return name == pattern;
}

/// Where a process is found that says to be a domain's.
enum class Place {
  wrong,    ///< it is another's, whatever it says
  unknown,  ///< no VM's cgroup: a session, or no unified hierarchy
  own,      ///< the domain's own cgroup
};

Place place_of(const HostPaths& paths, const DomainXml& domain, const QemuProcess& qemu) {
  if (paths.cgroup_root.empty() || domain.facts.domain_id < 0) return Place::unknown;
  const std::string directory = vm_directory(qemu.cgroup_path);
  if (directory.empty()) return Place::unknown;
  // Users may own parts of the hierarchy, and have directories of any name there.
  struct stat root{}, info{};
  if (::lstat(paths.cgroup_root.c_str(), &root) != 0 ||
      ::lstat((paths.cgroup_root + directory).c_str(), &info) != 0 || info.st_uid != root.st_uid)
    return Place::unknown;
  const auto id = vm_directory_id(directory);
  if (!id) return Place::unknown;
  return id == domain.facts.domain_id ? Place::own : Place::wrong;
}

bool is_qemu(const std::string& proc_root, std::uint32_t pid, const std::string& emulator) {
  const std::string name = executable_name(proc_root, pid);
  return name.empty() || name.starts_with("qemu") || name == emulator.substr(emulator.rfind('/') + 1);
}

Place examine(const HostPaths& paths, const DomainXml& domain, std::uint32_t pid, core::ProcessKey& key) {
  const auto found = process_key(paths.proc_root, pid);
  const auto qemu = found ? describe_qemu(paths.proc_root, *found) : core::fail(found.error());
  if (!qemu || qemu->uuid != domain.facts.uuid || qemu->capability_probe) return Place::wrong;
  if (!is_qemu(paths.proc_root, pid, domain.emulator)) return Place::wrong;
  if (domain.user && qemu->user != domain.user) return Place::wrong;
  key = *found;
  return place_of(paths, domain, *qemu);
}

}  // namespace

core::Result<core::ProcessKey> process_key(const std::string& proc_root, std::uint32_t pid) {
  const auto stat = read_file(proc_path(proc_root, pid, "stat"));
  if (!stat) return core::fail(stat.error());
  // proc(5): the name in parentheses may hold anything; state is the first field after it, start time the
  // 20th.
  const auto name_end = stat->rfind(')');
  std::istringstream fields(name_end == std::string::npos ? std::string() : stat->substr(name_end + 1));
  std::string state, skipped;
  fields >> state;
  for (int i = 0; i < 18; ++i) fields >> skipped;
  core::ProcessKey key{pid, 0};
  if (!(fields >> key.start_ticks))
    return core::fail(core::ErrorCode::corrupt, proc_path(proc_root, pid, "stat") + ": no start time");
  if (state == "Z" || state == "X")
    return core::fail(core::ErrorCode::not_found, "process " + std::to_string(pid) + " has ended");
  return key;
}

bool is_alive(const std::string& proc_root, core::ProcessKey process) {
  const auto now = process_key(proc_root, process.tgid);
  return now && *now == process;
}

QemuCommandLine parse_qemu_command_line(std::string_view cmdline) {
  QemuCommandLine result;
  std::string_view option;
  while (!cmdline.empty()) {
    const auto end = std::min(cmdline.find('\0'), cmdline.size());
    const std::string_view argument = cmdline.substr(0, end);
    cmdline.remove_prefix(std::min(end + 1, cmdline.size()));
    if (option == "-uuid") {
      result.uuid.value = argument;
      std::ranges::transform(result.uuid.value, result.uuid.value.begin(),
                             [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    } else if (option == "-name") {
      result.guest_name = guest_name(argument);
    } else if (option == "-machine" || option == "-M") {
      result.capability_probe = argument == "none" || argument.starts_with("none,");
    }
    option = argument;
    if (option.starts_with("--")) option.remove_prefix(1);  // QEMU takes both
  }
  return result;
}

core::Result<QemuProcess> describe_qemu(const std::string& proc_root, core::ProcessKey process) {
  const std::uint32_t pid = process.tgid;
  const auto cmdline = read_file(proc_path(proc_root, pid, "cmdline"));
  if (!cmdline) return core::fail(cmdline.error());
  const auto comm = read_file(proc_path(proc_root, pid, "comm"));
  const auto status = read_file(proc_path(proc_root, pid, "status"));
  const auto cgroup = read_file(proc_path(proc_root, pid, "cgroup"));
  // All was read between this process's start and now, or it is another's.
  if (!is_alive(proc_root, process) || (status && parse_pid(status_line(*status, "Tgid:\t")) != pid))
    return core::fail(core::ErrorCode::not_found, "process " + std::to_string(pid) + " has ended");

  QemuCommandLine arguments = parse_qemu_command_line(*cmdline);
  QemuProcess result;
  result.process = process;
  if (comm) result.comm = comm->substr(0, comm->find('\n'));
  result.uuid = std::move(arguments.uuid);
  result.guest_name = std::move(arguments.guest_name);
  result.capability_probe = arguments.capability_probe;
  // One number per pid namespace from ours inward.
  result.in_container = status && count_words(status_line(*status, "NSpid:")) > 1;
  if (cgroup) result.cgroup_path = unified_path(*cgroup);
  if (status) result.user = first_number(status_line(*status, "Uid:\t"));
  return result;
}

std::vector<core::ProcessKey> find_qemu(const std::string& proc_root, const std::vector<std::string>& names) {
  std::vector<core::ProcessKey> found;
  for (const std::uint32_t pid : all_pids(proc_root)) {
    const auto key = process_key(proc_root, pid);
    if (!key) continue;
    const std::string executable = executable_name(proc_root, pid);
    if (std::ranges::any_of(names, [&](const std::string& pattern) { return matches(executable, pattern); }))
      found.push_back(*key);
  }
  return found;
}

core::Result<core::ProcessKey> find_domain_process(const HostPaths& paths, const DomainXml& domain) {
  const std::string& name = domain.facts.name;
  core::ProcessKey key;
  if (name.find('/') == std::string::npos) {
    const auto pid_file = read_file(paths.run_dir + "/" + name + ".pid");
    const auto pid = pid_file ? parse_pid(*pid_file) : std::nullopt;
    if (pid && examine(paths, domain, *pid, key) != Place::wrong) return key;
  }
  std::vector<core::ProcessKey> own;
  std::vector<core::ProcessKey> others;
  for (const std::uint32_t pid : all_pids(paths.proc_root)) {
    const Place place = examine(paths, domain, pid, key);
    if (place == Place::own) own.push_back(key);
    if (place == Place::unknown) others.push_back(key);
  }
  const std::vector<core::ProcessKey>& candidates = own.empty() ? others : own;
  if (candidates.size() == 1) return candidates.front();
  if (candidates.empty())
    return core::fail(core::ErrorCode::not_found, "no QEMU process with -uuid " + domain.facts.uuid.value);
  return core::fail(core::ErrorCode::invalid_argument,
                    std::to_string(candidates.size()) + " processes with -uuid " + domain.facts.uuid.value);
}

}  // namespace kvmscope::virt
