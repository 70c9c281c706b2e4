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
  void write(const std::string& name, int vcpus, const std::string& job = "") const {
    tree.add(file(name + ".xml.new", "<domstatus><job type='" + job + "'/><domain id='1'><name>" + name +
                                         "</name><uuid>6b766d73-0000-4000-8000-00000000000a</uuid><vcpu>" +
                                         std::to_string(vcpus) + "</vcpu></domain></domstatus>"),
             "qemu");
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

TEST_CASE_METHOD(Fixture, "a domain that has changed is told, a burst of changes once") {
  files.watch();
  files.watch();
  CHECK(tell().empty());
  write("a", 1);
  CHECK(tell() == Told{{"a"}});
  for (int i = 0; i < 100; ++i) {
    write("a", i);
    write("b.xml", i);
  }
  CHECK(tell() == Told{{"a", "b.xml"}});
  tree.add(file("a.pid", "1"), "qemu");
  CHECK(tell().empty());
}

TEST_CASE_METHOD(Fixture, "a domain that is the same as before is not told: it may just be ending") {
  write("old", 1);
  files.watch();
  write("old", 1, "destroy");
  CHECK(tell().empty());
  write("new", 1);
  CHECK(tell() == Told{{"new"}});
  write("new", 1, "snapshot");
  write("new", 2, "snapshot");
  write("new", 1, "none");
  CHECK(tell().empty());
  tree.add(file("new.xml.new", "nonsense"), "qemu");
  std::filesystem::rename(tree.path("qemu/new.xml.new"), tree.path("qemu/new.xml"));
  tree.remove("qemu/old.xml");
  CHECK(tell().empty());
  write("old", 1);  // the next of that name
  CHECK(tell() == Told{{"old"}});
}

TEST_CASE_METHOD(Fixture, "one that changes without end is told all the same") {
  files.watch();
  const auto until = std::chrono::steady_clock::now() + 300ms;
  std::size_t count = 0;
  for (int i = 0; std::chrono::steady_clock::now() < until; ++i) {
    write("a", i);
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
  write("a", 1);
  CHECK(tell() == Told{{"a"}});
  tree.remove("qemu");
  tree.add(dir("qemu"));  // another one by that name
  CHECK(tell().empty());
  files.watch();
  write("b", 1);
  CHECK(tell() == Told{{"b"}});
}

}  // namespace
}  // namespace kvmscope::virt
