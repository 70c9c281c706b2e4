// SPDX-License-Identifier: Apache-2.0
// The source against a real libvirtd of its own. Needs root.
#include "virt/libvirt_source.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <optional>
#include <thread>

#include "tests/host-virt/private_libvirtd.h"
#include "tests/host-virt/stuck.h"

namespace kvmscope::virt {
namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using std::chrono::steady_clock;

/// The host's cgroups are common to all private libvirtds: two runs at a time must not meet there.
std::string unique_name(const std::string& letter) {
  return "kvmscope-test-virt-" + letter + "-" + std::to_string(::getpid());
}

const std::string kUuid = "6b766d73-0000-4000-8000-00000000000a";
const std::string kUuid2 = "6b766d73-0000-4000-8000-00000000000b";
const std::string kUuid3 = "6b766d73-0000-4000-8000-00000000000c";
const std::string kName = unique_name("a");
const std::string kName2 = unique_name("b");

const std::string kName3 = unique_name("c");

std::string nova(const std::string& project) {
  return "<n:instance xmlns:n=\"http://openstack.org/xmlns/libvirt/nova/1.1\"><n:name>web</n:name><n:owner>"
         "<n:user uuid=\"u1\">bob</n:user><n:project uuid=\"" +
         project + "\">shop</n:project></n:owner></n:instance>";
}

std::string disk(const std::string& path, const std::string& target) {
  return "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='" + path +
         "'/><target dev='" + target + "' bus='virtio'/></disk>";
}

/// The source on an io_context, and all that it told.
struct Listener {
  explicit Listener(const PrivateLibvirtd& libvirtd, std::chrono::milliseconds call_deadline = 1s) {
    LibvirtSource::Options options;
    options.executor = loop.get_executor();
    options.uri = libvirtd.uri();
    options.run_dir = libvirtd.dir + "/run/qemu";
    options.rescan_interval = 60s;  // events must do
    options.cgroup_interval = 100ms;
    options.call_deadline = call_deadline;
    options.reconnect_min = 50ms;
    options.reconnect_max = 500ms;
    options.on_seen = [this](const VmSeen& event) { seen.push_back(event.facts); };
    options.on_gone = [this](const VmGone& event) { gone.push_back(event); };
    options.on_problem = [this](const VmProblem& event) { problems.push_back(event); };
    options.on_connection = [this](const ConnectionState& event) { connections.push_back(event); };
    options.on_listed = [this](const std::vector<core::VmUuid>& uuids) { lists.push_back(uuids); };
    auto started = LibvirtSource::start(std::move(options));
    REQUIRE(started);
    source = std::move(*started);
  }

  template <typename Predicate>
  bool wait(Predicate predicate, std::chrono::milliseconds patience = 15s) {
    const auto until = steady_clock::now() + patience;
    while (!predicate() && steady_clock::now() < until) {
      loop.restart();
      loop.run_for(10ms);
    }
    return predicate();
  }
  bool wait_connected(bool up) {
    return wait([&] { return !connections.empty() && connections.back().connected == up; });
  }
  const core::VmFacts* last(const std::string& uuid) const {
    const auto at = std::ranges::find(seen.rbegin(), seen.rend(), uuid,
                                      [](const core::VmFacts& facts) { return facts.uuid.value; });
    return at == seen.rend() ? nullptr : &*at;
  }
  bool is_gone(const core::ProcessKey& process) const {
    return std::ranges::any_of(gone, [&](const VmGone& event) { return event.process == process; });
  }

  asio::io_context loop;
  std::vector<core::VmFacts> seen;
  std::vector<VmGone> gone;
  std::vector<VmProblem> problems;
  std::vector<ConnectionState> connections;
  std::vector<std::vector<core::VmUuid>> lists;
  std::unique_ptr<LibvirtSource> source;
};

std::vector<ino_t> inodes(const std::vector<std::string>& paths) {
  std::vector<ino_t> found;
  for (const std::string& path : paths) {
    struct stat info{};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    found.push_back(info.st_ino);
  }
  return found;
}

/// Of the top image, then the others.
std::vector<ino_t> disk_inodes(const core::Disk& disk) {
  std::vector<ino_t> found = {disk.inode};
  for (const core::DiskImage& image : disk.more_images) found.push_back(image.inode);
  return found;
}

std::ptrdiff_t count_threads() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/task"), {});
}

TEST_CASE("a domain is seen with its process, cgroups, disks and owner, changes, and goes") {
  const PrivateLibvirtd libvirtd;
  // libvirt holds a killed domain until init has reaped its QEMU, which some take seconds for.
  Listener listener(libvirtd, 10s);
  REQUIRE(listener.wait([&] { return listener.lists.size() == 1; }));
  REQUIRE(listener.lists[0].empty());
  REQUIRE(listener.connections.back().connected);

  const std::string image = libvirtd.image("a.img");
  const auto before = steady_clock::now();
  libvirtd.create(kName, kUuid, nova("p1"), disk(image, "vda"));
  REQUIRE(listener.wait([&] { return listener.last(kUuid) != nullptr; }));
  WARN("seen " << (steady_clock::now() - before) / 1ms << " ms after `virsh create` began");
  const core::VmFacts facts = *listener.last(kUuid);
  CHECK(facts.name == kName);
  CHECK(facts.domain_id > 0);
  CHECK(facts.process.tgid == libvirtd.domain_pid(kName));
  CHECK(facts.process == process_key("/proc", facts.process.tgid));
  CHECK(facts.vcpus == 1);
  CHECK(facts.nova == core::NovaMetadata{"web", "", "p1", "shop", "u1", "bob"});
  CHECK(facts.helpers.empty());

  CHECK(
      facts.cgroup_path.ends_with("qemu-" + std::to_string(facts.domain_id) + "-" + kName + ".libvirt-qemu"));
  CHECK(facts.cgroup_ids.size() == 3);  // itself, emulator, vcpu0

  struct stat file{};
  REQUIRE(::stat(image.c_str(), &file) == 0);
  REQUIRE(facts.disks.size() == 1);
  const core::Disk expected{"vda",
                            "virtio-disk0",
                            image,
                            core::DiskBacking::file,
                            major(file.st_dev),
                            minor(file.st_dev),
                            file.st_ino,
                            ""};
  CHECK(facts.disks[0] == expected);

  SECTION("a disk and a vCPU are plugged in, metadata is set later") {
    REQUIRE(libvirtd.virsh("attach-disk " + kName + " " + libvirtd.image("b.img") + " vdb --live"));
    REQUIRE(listener.wait([&] { return listener.last(kUuid)->disks.size() == 2; }));
    CHECK(listener.last(kUuid)->disks[1].target == "vdb");
    CHECK(listener.last(kUuid)->disks[1].inode != 0);

    REQUIRE(libvirtd.virsh("setvcpus " + kName + " 2 --live"));
    REQUIRE(listener.wait([&] { return listener.last(kUuid)->cgroup_ids.size() == 4; }));

    REQUIRE(libvirtd.virsh(
        "metadata " + kName +
        " --live --uri https://kvmscope.dev/xmlns/vm/1.0 --key x --set '<vm tenant=\"t9\"/>'"));
    REQUIRE(listener.wait([&] { return listener.last(kUuid)->own.has_value(); }));
    CHECK(listener.last(kUuid)->own->tenant == "t9");
    CHECK(listener.gone.empty());
  }
  SECTION("it ends and starts again under the same UUID") {
    REQUIRE(libvirtd.virsh("destroy " + kName));
    REQUIRE(listener.wait([&] { return listener.is_gone(facts.process); }));
    CHECK(listener.gone.size() == 1);
    libvirtd.create(kName, kUuid);
    REQUIRE(listener.wait([&] { return listener.last(kUuid)->process != facts.process; }));
    CHECK(listener.last(kUuid)->process.tgid == libvirtd.domain_pid(kName));
    CHECK_FALSE(listener.last(kUuid)->nova);
    CHECK(listener.gone.size() == 1);
  }
  SECTION("its QEMU is killed") {
    REQUIRE(::kill(static_cast<pid_t>(facts.process.tgid), SIGKILL) == 0);
    REQUIRE(listener.wait([&] { return listener.is_gone(facts.process); }));
  }
  SECTION("another domain of that name comes after it") {
    REQUIRE(libvirtd.virsh("destroy " + kName));
    libvirtd.create(kName, kUuid2, nova("p2"));
    REQUIRE(listener.wait([&] { return listener.last(kUuid2) != nullptr; }));
    CHECK(listener.is_gone(facts.process));
    CHECK(listener.last(kUuid2)->process.tgid == libvirtd.domain_pid(kName));
    CHECK(listener.last(kUuid2)->nova->project_id == "p2");
  }
  for (const VmProblem& problem : listener.problems) FAIL_CHECK(problem.reason + ": " + problem.detail);
}

TEST_CASE("a disk's images are known as soon as they are used") {
  const PrivateLibvirtd libvirtd;
  Listener listener(libvirtd, 10s);
  REQUIRE(listener.wait([&] { return !listener.lists.empty(); }));
  const std::string base = libvirtd.image("base.img");
  const std::string top = libvirtd.dir + "/top.qcow2";
  const std::string snapshot = libvirtd.dir + "/snapshot.qcow2";
  const std::string copy = libvirtd.dir + "/copy.qcow2";
  REQUIRE(run("qemu-img create -f qcow2 -b " + base + " -F raw " + top));
  const std::string qcow2 =
      "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='" + top +
      "'/><target dev='vda' bus='virtio'/></disk>";
  libvirtd.create(kName, kUuid, "", qcow2);
  REQUIRE(listener.wait([&] { return listener.last(kUuid) != nullptr; }));

  /// By events and status files alone: the next list is a minute away.
  const auto becomes = [&](const std::vector<std::string>& paths) {
    CAPTURE(paths);
    const auto begin = steady_clock::now();
    CHECK(listener.wait([&] { return disk_inodes(listener.last(kUuid)->disks.at(0)) == inodes(paths); }, 2s));
    WARN("known after " << (steady_clock::now() - begin) / 1ms << " ms");
  };
  becomes({top, base});
  REQUIRE(libvirtd.virsh("snapshot-create-as " + kName +
                         " --disk-only --no-metadata --diskspec vda,file=" + snapshot));
  becomes({snapshot, top, base});

  // A copy that has no more than begun, and at 1 MiB/s takes a while.
  REQUIRE(libvirtd.virsh("blockcopy " + kName + " vda " + copy + " --transient-job --bandwidth 1"));
  becomes({snapshot, copy, top, base});
  REQUIRE(libvirtd.virsh("blockjob " + kName + " vda --abort"));
  becomes({snapshot, top, base});

  REQUIRE(libvirtd.virsh("blockcommit " + kName + " vda --active --base " + top + " --wait"));
  becomes({snapshot, top, base});  // top is the target now, and of the chain as before
  REQUIRE(libvirtd.virsh("blockjob " + kName + " vda --pivot"));
  becomes({top, base});
  REQUIRE(libvirtd.virsh("blockpull " + kName + " vda --wait"));
  becomes({top});

  const std::string other = libvirtd.dir + "/other.qcow2";
  REQUIRE(run("qemu-img create -f qcow2 -b " + base + " -F raw " + other));
  std::ofstream(libvirtd.dir + "/disk.xml")
      << "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='" << other
      << "'/><target dev='vdb' bus='virtio'/></disk>";
  REQUIRE(libvirtd.virsh("attach-device " + kName + " " + libvirtd.dir + "/disk.xml --live"));
  REQUIRE(listener.wait([&] { return listener.last(kUuid)->disks.size() == 2; }, 2s));
  CHECK(disk_inodes(listener.last(kUuid)->disks[1]) == inodes({other, base}));
  // The guest, which sits in its BIOS, never lets go of the device: QEMU ends it at the next reset.
  REQUIRE(libvirtd.virsh("detach-device " + kName + " " + libvirtd.dir + "/disk.xml --live"));
  REQUIRE(libvirtd.virsh("reset " + kName));
  REQUIRE(listener.wait([&] { return listener.last(kUuid)->disks.size() == 1; }, 5s));
  becomes({top});
  for (const VmProblem& problem : listener.problems) FAIL_CHECK(problem.reason + ": " + problem.detail);
}

TEST_CASE("a domain that lives for a moment is seen, owner and all") {
  const PrivateLibvirtd libvirtd;
  Listener listener(libvirtd);
  REQUIRE(listener.wait([&] { return !listener.lists.empty(); }));
  for (int round = 0; round < 3; ++round) {
    listener.seen.clear();
    libvirtd.create(kName, kUuid, nova("p1"));
    REQUIRE(libvirtd.virsh("destroy " + kName));
    REQUIRE(listener.wait([&] { return listener.gone.size() == static_cast<std::size_t>(round) + 1; }, 3s));
    REQUIRE(listener.last(kUuid) != nullptr);
    CHECK(listener.last(kUuid)->nova->project_id == "p1");
    CHECK(listener.gone.back().process == listener.last(kUuid)->process);
  }
}

TEST_CASE("libvirtd is killed and started again: nobody is gone but who went meanwhile") {
  const PrivateLibvirtd libvirtd;
  Listener listener(libvirtd);
  libvirtd.create(kName, kUuid);
  libvirtd.create(kName2, kUuid2);
  REQUIRE(listener.wait([&] { return listener.last(kUuid) != nullptr && listener.last(kUuid2) != nullptr; }));
  const core::ProcessKey stays = listener.last(kUuid)->process;
  const core::ProcessKey goes = listener.last(kUuid2)->process;
  REQUIRE(listener.wait([&] { return !listener.lists.empty(); }));
  listener.lists.clear();

  libvirtd.kill();
  REQUIRE(listener.wait_connected(false));
  libvirtd.kill_domain_unseen(kName2);
  CHECK_FALSE(listener.wait([&] { return !listener.gone.empty(); }, 1s));

  libvirtd.start();
  REQUIRE(listener.wait_connected(true));
  REQUIRE(listener.wait([&] { return listener.is_gone(goes); }));
  REQUIRE(listener.wait([&] { return !listener.lists.empty(); }));
  CHECK(listener.lists.back() == std::vector{core::VmUuid{kUuid}});
  CHECK(listener.gone.size() == 1);
  CHECK(listener.last(kUuid)->process == stays);

  REQUIRE(libvirtd.virsh("destroy " + kName));  // and events come again
  REQUIRE(listener.wait([&] { return listener.is_gone(stays); }));
}

TEST_CASE("a libvirtd that hangs holds up nothing, and is taken up when it goes on") {
  const PrivateLibvirtd libvirtd;
  std::optional<Listener> listener(libvirtd);
  libvirtd.create(kName, kUuid);
  REQUIRE(listener->wait([&] { return listener->last(kUuid) != nullptr && !listener->lists.empty(); }));

  libvirtd.signal(SIGSTOP);
  listener->source->refresh();
  const auto begin = steady_clock::now();
  steady_clock::duration worst{};
  for (int i = 0; i < 30; ++i) {
    const auto due = steady_clock::now() + 100ms;
    bool fired = false;
    asio::steady_timer timer(listener->loop, due);
    timer.async_wait([&](const boost::system::error_code&) {
      worst = std::max(worst, steady_clock::now() - due);
      fired = true;
    });
    REQUIRE(listener->wait([&] { return fired; }));
  }
  WARN("worst timer delay " << worst / 1us << " us");
  CHECK(worst < 250ms);
  CHECK(steady_clock::now() - begin < 4s);
  CHECK_FALSE(listener->connections.back().connected);
  CHECK(listener->gone.empty());

  SECTION("it goes on") {
    libvirtd.signal(SIGCONT);
    REQUIRE(listener->wait_connected(true));
    REQUIRE(libvirtd.virsh("destroy " + kName));
    REQUIRE(listener->wait([&] { return listener->gone.size() == 1; }));
    // and lets the source go without leaving threads behind
    listener.reset();
  }
  SECTION("the source is destroyed, and another takes its place") {
    const auto goodbye = steady_clock::now();
    listener.reset();
    WARN("destroyed in " << (steady_clock::now() - goodbye) / 1ms << " ms");
    CHECK(steady_clock::now() - goodbye < 1'500ms);
    libvirtd.signal(SIGCONT);
    Listener next(libvirtd);
    REQUIRE(next.wait([&] { return next.last(kUuid) != nullptr; }));
  }
}

TEST_CASE("a disk whose file system hangs holds up its own domain only") {
  const PrivateLibvirtd libvirtd;
  Listener listener(libvirtd, 2s);
  REQUIRE(listener.wait([&] { return !listener.lists.empty(); }));
  const std::string mount = libvirtd.dir + "/nfs";
  std::filesystem::create_directory(mount);
  libvirtd.create(kName, kUuid, "", disk(libvirtd.image("nfs/a.img"), "vda"));
  libvirtd.create(kName2, kUuid2, "", disk(libvirtd.image("nfs/b.img"), "vda"));
  REQUIRE(listener.wait([&] { return listener.last(kUuid) != nullptr && listener.last(kUuid2) != nullptr; }));
  const std::size_t lists = listener.lists.size();
  const std::size_t seen = listener.seen.size();
  {
    const HungDirectory hung(mount);
    listener.source->refresh();
    // More than can be looked at at a time hang: they give way, long before the deadline.
    libvirtd.create(kName3, kUuid3);
    REQUIRE(listener.wait([&] { return listener.last(kUuid3) != nullptr; }, 1s));
    // The list does not wait for them, either.
    REQUIRE(listener.wait([&] { return listener.lists.size() > lists; }, 4s));
    CHECK(listener.lists.back().size() >= 2);
    REQUIRE(listener.problems.size() == 2);
    for (const VmProblem& problem : listener.problems) {
      CHECK(problem.reason == "the host does not answer for its process or its disks");
      CHECK(problem.detail == "no answer within 2000 ms");
    }
    // They are not looked at again: threads that hang do not add up.
    const auto threads = count_threads();
    listener.source->refresh();
    REQUIRE(listener.wait([&] { return listener.lists.size() > lists + 1; }, 2s));
    CHECK(count_threads() <= threads);
    CHECK(listener.seen.size() == seen + 1);
  }
  // Seen again, which takes the problem back.
  REQUIRE(listener.wait([&] { return listener.seen.size() >= seen + 3; }));
  listener.source->refresh();
  REQUIRE(listener.wait([&] { return listener.last(kUuid)->disks[0].invisible_reason.empty(); }));
  CHECK(listener.connections.size() == 1);
  CHECK(listener.gone.empty());
}

TEST_CASE("a domain whose lock libvirt holds holds up neither the others nor the connection") {
  const PrivateLibvirtd libvirtd;
  Listener listener(libvirtd, 1s);
  libvirtd.create(kName, kUuid);
  libvirtd.create(kName2, kUuid2);
  REQUIRE(listener.wait([&] { return listener.last(kUuid) != nullptr && listener.last(kUuid2) != nullptr; }));
  REQUIRE(listener.wait([&] { return !listener.lists.empty(); }));
  const core::ProcessKey first = listener.last(kUuid)->process;
  const core::ProcessKey second = listener.last(kUuid2)->process;
  const std::string up = listener.connections.back().detail;

  // Until libvirt waits for its QEMU to end.
  const auto destroy = [&](const std::string& name, const Unkillable& qemu) {
    std::jthread virsh([&libvirtd, name] { libvirtd.virsh("destroy " + name); });
    REQUIRE(listener.wait([&] { return qemu.was_told_to_end(); }));
    return virsh;
  };
  // C goes on as if nothing were.
  int tenant = 0;
  const auto c_is_followed = [&] {
    const std::string now = std::to_string(++tenant);
    REQUIRE(libvirtd.virsh("metadata " + kName3 +
                           " --live --uri https://kvmscope.dev/xmlns/vm/1.0 --key x --set '<vm tenant=\"" +
                           now + "\"/>'"));
    CHECK(listener.wait([&] { return listener.last(kUuid3)->own == core::OwnMetadata{now, ""}; }, 3s));
  };
  std::jthread destroying_a, destroying_b;
  Unkillable a(first.tgid), b(second.tgid);
  destroying_a = destroy(kName, a);
  listener.source->refresh();
  REQUIRE(listener.wait([&] { return listener.connections.back().detail != up; }, 4s));
  CHECK(listener.connections.back().connected);
  CHECK(listener.connections.back().detail == up + "; waits for a locked domain with its list");

  // Its beginning end alone is no reason to ask for A: with that question open libvirt could start no other.
  CHECK(listener.problems.empty());
  libvirtd.create(kName3, kUuid3);
  REQUIRE(listener.wait([&] { return listener.last(kUuid3) != nullptr; }, 3s));

  libvirtd.change_status(kName);
  REQUIRE(listener.wait([&] { return !listener.problems.empty(); }, 4s));
  CHECK(listener.problems[0].uuid.value == kUuid);
  CHECK(listener.problems[0].reason == "libvirt does not answer for it");
  CHECK(listener.connections.size() == 2);
  c_is_followed();

  SECTION("then it goes, and the list comes") {
    a.end();
    REQUIRE(listener.wait([&] { return listener.is_gone(first); }));
    REQUIRE(listener.wait([&] { return listener.connections.back().detail == up; }));
    CHECK(listener.connections.size() == 3);
  }
  SECTION("then libvirtd stops, too, though nothing new is asked") {
    listener.wait([] { return false; }, 1s);  // whatever C's change has set off is over
    libvirtd.signal(SIGSTOP);
    CHECK(listener.wait([&] { return !listener.connections.back().connected; }, 10s));
    libvirtd.signal(SIGCONT);
    REQUIRE(listener.wait_connected(true));
  }
  SECTION("with too many of them the connection has no room left, and another is made") {
    destroying_b = destroy(kName2, b);
    libvirtd.change_status(kName2);
    REQUIRE(listener.wait_connected(false));
    CHECK(listener.connections.back().detail.ends_with("3 calls do not return"));
    REQUIRE(listener.wait_connected(true));
    c_is_followed();
    CHECK(listener.gone.empty());
    a.end();
    b.end();
    REQUIRE(listener.wait([&] { return listener.is_gone(first) && listener.is_gone(second); }));
    CHECK(listener.gone.size() == 2);
  }
}

TEST_CASE("a libvirtd that stops is noticed by a look, without a list") {
  const PrivateLibvirtd libvirtd;
  Listener listener(libvirtd, 1s);
  libvirtd.create(kName, kUuid);
  REQUIRE(listener.wait([&] { return listener.last(kUuid) != nullptr && !listener.lists.empty(); }));
  libvirtd.signal(SIGSTOP);
  libvirtd.change_status(kName);
  const auto begin = steady_clock::now();
  CHECK(listener.wait_connected(false));
  CHECK(steady_clock::now() - begin < 1'800ms);
  libvirtd.signal(SIGCONT);
  REQUIRE(listener.wait_connected(true));
}

TEST_CASE("there is one source a process") {
  const PrivateLibvirtd libvirtd;
  const Listener listener(libvirtd);
  LibvirtSource::Options options;
  asio::io_context loop;
  options.executor = loop.get_executor();
  const auto second = LibvirtSource::start(std::move(options));
  REQUIRE_FALSE(second);
  CHECK(second.error().code() == core::ErrorCode::already_exists);
}

TEST_CASE("the host is probed") {
  const PrivateLibvirtd libvirtd;
  const auto features = probe_host(libvirtd.uri());
  REQUIRE(features.size() == 2);
  CHECK(features[0].present);
  CHECK(features[0].detail.find("libvirt 9.") != std::string::npos);
  CHECK(features[1].present);

  const auto none = probe_host("qemu+unix:///system?socket=/nowhere");
  CHECK_FALSE(none[0].present);
  CHECK_FALSE(none[0].effect.empty());
}

}  // namespace
}  // namespace kvmscope::virt
