// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/catch.h"

namespace kvmscope::virt {

/// A tree of files written down as one nested expression (after oomd's Fixture.h):
///   TempTree tree({dir("machine.slice", {dir("a.scope", {file("cgroup.procs", "12\n")})})});
struct Entry {
  enum class Kind { directory, file, link } kind;
  std::string name;
  std::string content;
  std::vector<Entry> children;
};

inline Entry dir(std::string name, std::vector<Entry> children = {}) {
  return {Entry::Kind::directory, std::move(name), "", std::move(children)};
}
inline Entry file(std::string name, std::string content = "") {
  return {Entry::Kind::file, std::move(name), std::move(content), {}};
}
inline Entry link(std::string name, std::string target) {
  return {Entry::Kind::link, std::move(name), std::move(target), {}};
}

class TempTree {
 public:
  explicit TempTree(const std::vector<Entry>& entries = {}) {
    std::string name = (std::filesystem::temp_directory_path() / "kvmscope-tree.XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    root_ = name;
    for (const Entry& entry : entries) add(entry);
  }
  ~TempTree() { std::filesystem::remove_all(root_); }
  TempTree(const TempTree&) = delete;
  TempTree& operator=(const TempTree&) = delete;

  const std::string& root() const { return root_; }
  std::string path(const std::string& below) const { return root_ + "/" + below; }
  void add(const Entry& entry, const std::string& below = "") const {
    const std::string at = root_ + "/" + (below.empty() ? "" : below + "/") + entry.name;
    switch (entry.kind) {
      case Entry::Kind::directory:
        std::filesystem::create_directory(at);
        for (const Entry& child : entry.children) add(child, (below.empty() ? "" : below + "/") + entry.name);
        break;
      case Entry::Kind::file:
        std::ofstream(at, std::ios::trunc) << entry.content;
        break;
      case Entry::Kind::link:
        std::filesystem::create_symlink(entry.content, at);
        break;
    }
  }
  void remove(const std::string& below) const { std::filesystem::remove_all(path(below)); }

 private:
  std::string root_;
};

/// A process as /proc shows it. Arguments are joined by NUL, as the kernel does.
struct FakeProcess {
  unsigned pid = 0;
  std::uint64_t start = 0;
  std::vector<std::string> arguments;
  std::string cgroup = "/";
  std::string executable = "/usr/bin/qemu-system-x86_64";
  std::string comm = "qemu-system-x86";
  char state = 'S';
  std::string pid_in_namespace;
  unsigned user = 64055;
};

inline Entry process(const FakeProcess& given) {
  std::string cmdline;
  for (const std::string& argument : given.arguments) cmdline += argument + '\0';
  const std::string pid = std::to_string(given.pid);
  return dir(
      pid,
      {file("stat", pid + " (" + given.comm + ") " + given.state +
                        " 1 2 3 0 -1 4194560 5 6 7 8 9 10 11 12 20 0 4 0 " + std::to_string(given.start) +
                        " 1597489152 11389 0\n"),
       file("status", "Name:\tx\nTgid:\t" + pid + "\nPid:\t" + pid + "\nNSpid:\t" + pid +
                          given.pid_in_namespace + "\nUid:\t" + std::to_string(given.user) + "\t0\t0\t0\n"),
       file("comm", given.comm + "\n"), file("cmdline", cmdline),
       file("cgroup", "9:name=systemd:/other\n0::" + given.cgroup + "\n"), link("exe", given.executable)});
}

}  // namespace kvmscope::virt
