// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "bpf/abi.h"
#include "bpf/tracer.h"
#include "hostd/core/ids.h"
#include "hostd/core/series.h"

namespace kvmscope::core {
/// For a failed assertion.
inline std::ostream& operator<<(std::ostream& out, const CounterValue& value) {
  return out << value.count << " (" << value.sum << ")";
}
}  // namespace kvmscope::core

namespace kvmscope::bpf::test {

using Arguments = std::vector<std::string>;

/// A folder on a real file system, removed with its owner.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// A child process; killed and reaped with its owner.
class Child {
 public:
  explicit Child(const Arguments& arguments);
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, 0)) {}
  Child& operator=(Child&&) = delete;
  ~Child();
  pid_t pid() const { return pid_; }
  /// Exit status; -1 if a signal ended it.
  int wait();
  bool running();
  core::ProcessKey key() const;
  /// What it, all of its threads, has used of CPUs.
  std::uint64_t cpu_ns() const;

 private:
  pid_t pid_ = 0;
};

/// Runs to the end; the test fails unless it exits with 0. Returns what it printed.
std::string run(const Arguments& arguments);
/// The same, but a failure is the caller's to judge.
int run_status(const Arguments& arguments);

/// A fully written file (no holes: they never reach the block layer).
void write_file(const std::filesystem::path& path, std::size_t bytes);

/// A loop device on a file, with direct I/O.
class LoopDevice {
 public:
  explicit LoopDevice(const std::filesystem::path& file);
  ~LoopDevice();
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;
  const std::string& path() const { return path_; }
  DiskKey key() const;

 private:
  std::string path_;
};

/// A mounted file system on a device, made here.
class Mount {
 public:
  Mount(const std::string& device, std::filesystem::path where);
  ~Mount();
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return where_ / name; }

 private:
  std::filesystem::path where_;
};

/// An nbdkit server shown as a file by FUSE: a disk as slow or as faulty as its filters say.
class NbdDisk {
 public:
  NbdDisk(const std::filesystem::path& where, const Arguments& nbdkit);
  ~NbdDisk();
  NbdDisk(const NbdDisk&) = delete;
  NbdDisk& operator=(const NbdDisk&) = delete;
  std::filesystem::path disk() const { return where_ / "disk"; }

 private:
  std::filesystem::path where_;
  std::unique_ptr<Child> server_;
};

DiskKey file_key(const std::filesystem::path& path);

/// What a slot has counted, over all its disks or on one.
struct Totals {
  core::CounterValue operations[KV_OPS];
  std::uint64_t errors = 0;
};
Totals totals(const SlotMaps& maps, std::uint16_t dev);
/// Sum over the other rows.
Totals totals_beside(const SlotMaps& maps, std::uint16_t dev);
core::HistogramValue duration(const SlotMaps& maps, std::uint16_t kind, std::uint16_t dev, std::uint16_t op);

/// The hooks that this kernel can take a request's identity at.
std::vector<IdentityHook> identity_hooks();

/// How many times slower than usual this machine is, by $KVMSCOPE_SLOWNESS.
int slowness();

/// A tracer with slots, and programs that it takes for QEMU.
class Rig {
 public:
  explicit Rig(IdentityHook hook = IdentityHook::automatic);
  ~Rig();

  Tracer& tracer() { return *tracer_; }
  /// Copies a program under a name that counts as QEMU.
  std::string qemu(const std::string& program);
  static std::string qemu_prefix();
  /// Installs a slot of a new generation; does not offer it.
  SlotMaps install(std::uint32_t slot, SlotShape shape = {});
  SlotMaps grow(const SlotMaps& old, SlotShape shape);
  core::Result<void> retire(core::SlotIdentity identity);
  /// Installs a slot and offers it: the next process of qemu() takes it.
  SlotMaps spare(std::uint32_t slot, SlotShape shape = {});
  /// Runs the loop until the condition holds; the test fails if it never does (on a slow machine,
  /// after slowness() times the limit).
  void until(const std::function<bool()>& condition,
             std::chrono::milliseconds limit = std::chrono::seconds(10));
  void spin(std::chrono::milliseconds time);
  std::uint64_t stat(std::string_view name) const;

  std::vector<ProcessEvent> processes;
  struct IoError {
    core::SlotIdentity identity;
    std::uint32_t tenant_index;
    IoErrorEvent event;
  };
  std::vector<IoError> io_errors;

 private:
  template <typename T>
  core::Result<T> wait_for(const std::function<void(std::function<void(core::Result<T>)>)>& start);

  TempDir programs_;
  boost::asio::io_context loop_;
  std::unique_ptr<Tracer> tracer_;
  std::uint32_t generation_ = 100;
  std::uint32_t incarnation_ = 0;
};

}  // namespace kvmscope::bpf::test
