// SPDX-License-Identifier: Apache-2.0
#include <sys/stat.h>

#include <chrono>
#include <future>
#include <thread>

#include "virt/cgroups.h"
#include "virt/connection.h"
#include "virt/event_loop.h"
#include "virt/files.h"
#include "virt/libvirt_source.h"

namespace kvmscope::virt {
namespace {

using core::HostFeature;

constexpr std::chrono::seconds kPatience{3};

core::Result<std::string> ask_libvirt(const std::string& uri) {
  if (const auto ready = initialize_libvirt(); !ready) return core::fail(ready.error());
  std::promise<core::Result<std::string>> promise;
  auto answer = promise.get_future();
  // A libvirtd that hangs keeps this thread, never the caller.
  std::thread([uri, promise = std::move(promise)]() mutable {
    Connection::Options options;
    options.uri = uri;
    const auto connection = Connection::open(options, {[](const DomainEvent&) {}, [](const std::string&) {}});
    promise.set_value(connection ? (*connection)->describe() : core::fail(connection.error()));
  }).detach();
  if (answer.wait_for(kPatience) != std::future_status::ready)
    return core::fail(core::ErrorCode::deadline_exceeded, uri + ": no answer within 3 s");
  return answer.get();
}

HostFeature libvirt_feature(const std::string& uri) {
  const auto version = ask_libvirt(uri);
  if (version) return {"libvirt", true, *version, ""};
  return {"libvirt", false, version.error().message(),
          "VMs have no names, disks or tenants: all they do is counted as unattributed"};
}

bool is_directory(const std::string& path) {
  struct stat info{};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

HostFeature cgroup_feature() {
  const auto mounts = read_file("/proc/self/mountinfo");
  const std::string root = mounts ? unified_mount_point(*mounts) : "";
  if (root.empty())
    return {"cgroup v2", false, "the unified hierarchy is not mounted",
            "VMs are told apart by process id alone"};
  std::string layout = "no VM has run yet";
  if (is_directory(root + "/machine")) layout = "libvirt's own directories in " + root + "/machine";
  if (is_directory(root + "/machine.slice")) layout = "systemd scopes in " + root + "/machine.slice";
  return {"cgroup v2", true, layout, ""};
}

}  // namespace

std::vector<HostFeature> probe_host(const std::string& uri) {
  return {libvirt_feature(uri), cgroup_feature()};
}

}  // namespace kvmscope::virt
