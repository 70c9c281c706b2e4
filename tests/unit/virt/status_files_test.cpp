// SPDX-License-Identifier: Apache-2.0
#include "virt/status_files.h"

#include <boost/asio/io_context.hpp>
#include <chrono>

#include "tests/unit/virt/tree.h"

namespace kvmscope::virt {
namespace {

using namespace std::chrono_literals;

struct Fixture {
  /// As libvirt does it.
  void write(const std::string& name) const {
    tree.add(file(name + ".xml.new"), "qemu");
    std::filesystem::rename(tree.path("qemu/" + name + ".xml.new"), tree.path("qemu/" + name + ".xml"));
  }
  std::vector<StatusFiles::Names> tell(std::chrono::milliseconds time = 150ms) {
    loop.restart();
    loop.run_for(time);
    return std::exchange(told, {});
  }

  boost::asio::io_context loop;
  TempTree tree{{dir("qemu")}};
  std::vector<StatusFiles::Names> told;
  StatusFiles files{loop.get_executor(), tree.path("qemu"),
                    [this](const StatusFiles::Names& names) { told.push_back(names); }};
};

using Told = std::vector<StatusFiles::Names>;

TEST_CASE_METHOD(Fixture, "a rewritten status file is told, a burst of them once") {
  files.watch();
  files.watch();
  CHECK(tell().empty());
  write("a");
  CHECK(tell() == Told{{"a"}});
  for (int i = 0; i < 100; ++i) {
    write("a");
    write("b.xml");
  }
  CHECK(tell() == Told{{"a", "b.xml"}});
  tree.add(file("a.pid", "1"), "qemu");
  tree.remove("qemu/a.xml");
  CHECK(tell().empty());
}

TEST_CASE_METHOD(Fixture, "one that is written without end is told all the same") {
  files.watch();
  const auto until = std::chrono::steady_clock::now() + 300ms;
  std::size_t count = 0;
  while (std::chrono::steady_clock::now() < until) {
    write("a");
    count += tell(5ms).size();
  }
  CHECK(count >= 2);
  CHECK(count <= 7);
}

TEST_CASE_METHOD(Fixture, "a directory that is not there is watched when it comes") {
  tree.remove("qemu");
  files.watch();
  tree.add(dir("qemu"));
  files.watch();
  write("a");
  CHECK(tell() == Told{{"a"}});
  tree.remove("qemu");
  tree.add(dir("qemu"));  // another one by that name
  CHECK(tell().empty());
  files.watch();
  write("b");
  CHECK(tell() == Told{{"b"}});
}

}  // namespace
}  // namespace kvmscope::virt
