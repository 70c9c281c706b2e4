// SPDX-License-Identifier: Apache-2.0
#include "virt/cgroups.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <optional>
#include <sstream>
#include <system_error>

#include "virt/files.h"

namespace kvmscope::virt {
namespace {

// mountinfo writes blank, tab, newline and backslash as \ooo.
std::string unescape_octal(std::string_view text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '\\' && i + 3 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 4, value, 8).ptr == text.data() + i + 4) {
      plain += static_cast<char>(value);
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

bool is_vm_directory(std::string_view name) {
  return (name.starts_with("machine-qemu\\x2d") && name.ends_with(".scope")) ||
         name.ends_with(".libvirt-qemu");
}

std::optional<CgroupDir> look_at(const std::string& path) {
  struct stat info{};
  if (::lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) return std::nullopt;
  return CgroupDir{path, info.st_ino, info.st_nlink};
}

void add_tree(const std::string& directory, CgroupTree& tree) {
  const auto self = look_at(directory);
  if (!self) return;
  tree.push_back(*self);
  std::error_code error;
  for (std::filesystem::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    if (entry->symlink_status(ignored).type() == std::filesystem::file_type::directory)
      add_tree(entry->path().string(), tree);
  }
}

}  // namespace

std::string unified_mount_point(std::string_view mountinfo) {
  std::istringstream lines{std::string(mountinfo)};
  std::string line;
  while (std::getline(lines, line)) {
    // 36 35 98:0 ROOT MOUNT_POINT options [optional ...] - TYPE source options
    const auto separator = line.find(" - ");
    if (separator == std::string::npos || line.compare(separator + 3, 8, "cgroup2 ") != 0) continue;
    std::istringstream fields(line);
    std::string id, parent, device, root, mount_point;
    if (fields >> id >> parent >> device >> root >> mount_point && root == "/")
      return unescape_octal(mount_point);
  }
  return {};
}

std::string unified_path(std::string_view proc_cgroup) {
  std::istringstream lines{std::string(proc_cgroup)};
  std::string line;
  while (std::getline(lines, line)) {
    if (!line.starts_with("0::/")) continue;
    std::string path = line.substr(3);
    if (path.ends_with(" (deleted)") || path.starts_with("/..")) return {};
    return path;
  }
  return {};
}

std::string vm_directory(std::string_view cgroup_path) {
  for (std::size_t end = cgroup_path.size(); end != std::string_view::npos && end > 0;
       end = cgroup_path.rfind('/', end - 1)) {
    const std::string_view directory = cgroup_path.substr(0, end);
    if (is_vm_directory(directory.substr(directory.rfind('/') + 1))) return std::string(directory);
  }
  return {};
}

std::optional<std::int32_t> vm_directory_id(std::string_view directory) {
  std::string_view name = directory.substr(directory.rfind('/') + 1);
  // The first dash of systemd's names is theirs, those of libvirt's are escaped.
  for (const std::string_view prefix : {R"(machine-qemu\x2d)", "qemu-"}) {
    if (!name.starts_with(prefix)) continue;
    name.remove_prefix(prefix.size());
    std::int32_t id = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), id);
    if (error == std::errc() && id >= 0 && end != name.data() + name.size() && (*end == '-' || *end == '\\'))
      return id;
    return std::nullopt;
  }
  return std::nullopt;
}

CgroupTree read_cgroup_tree(const std::string& directory) {
  CgroupTree tree;
  add_tree(directory, tree);
  return tree;
}

bool is_unchanged(const CgroupTree& tree) {
  return std::ranges::all_of(tree, [](const CgroupDir& was) {
    const auto now = look_at(was.path);
    return now && now->inode == was.inode && now->links == was.links;
  });
}

std::vector<std::uint64_t> cgroup_ids(const CgroupTree& tree) {
  std::vector<std::uint64_t> ids;
  ids.reserve(tree.size());
  for (const CgroupDir& dir : tree) ids.push_back(dir.inode);
  std::ranges::sort(ids);
  return ids;
}

std::vector<std::uint32_t> member_pids(const CgroupTree& tree) {
  std::vector<std::uint32_t> pids;
  for (const CgroupDir& dir : tree) {
    const auto content = read_file(dir.path + "/cgroup.procs");
    if (!content) continue;  // threaded, or gone
    std::istringstream numbers(*content);
    for (std::uint32_t pid = 0; numbers >> pid;)
      if (pid != 0) pids.push_back(pid);  // 0: outside of our pid namespace
  }
  std::ranges::sort(pids);
  pids.erase(std::ranges::unique(pids).begin(), pids.end());
  return pids;
}

}  // namespace kvmscope::virt
