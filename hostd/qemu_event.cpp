// SPDX-License-Identifier: Apache-2.0
#include "hostd/qemu_event.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <variant>

namespace kvmscope::hostd {
namespace {

struct Row {
  std::string_view name;    ///< QEMU's (qapi/*.json in its source)
  std::string_view record;  ///< ours
  core::Severity severity;
  const char* body;
};

using enum core::Severity;
constexpr auto kRows = std::to_array<Row>({
    {"BLOCK_IO_ERROR", "kvmscope.vm.qemu.block_io_error", error, "a request of the guest failed"},
    {"BLOCK_IMAGE_CORRUPTED", "kvmscope.vm.qemu.block_image_corrupted", error, "a disk image is corrupt"},
    {"BLOCK_JOB_READY", "kvmscope.vm.qemu.block_job_ready", info, "a block job is ready to be completed"},
    {"BLOCK_JOB_COMPLETED", "kvmscope.vm.qemu.block_job_completed", info, "a block job ended"},
    {"BLOCK_JOB_CANCELLED", "kvmscope.vm.qemu.block_job_cancelled", info, "a block job was cancelled"},
    {"BLOCK_JOB_ERROR", "kvmscope.vm.qemu.block_job_error", error, "a block job met an error"},
    {"DEVICE_DELETED", "kvmscope.vm.qemu.device_deleted", info, "the guest gave a device up"},
    {"GUEST_CRASHLOADED", "kvmscope.vm.qemu.guest_crashloaded", error,
     "the guest's kernel crashed into another one"},
    {"GUEST_PANICKED", "kvmscope.vm.qemu.guest_panicked", error, "the guest's kernel panicked"},
    {"MEMORY_FAILURE", "kvmscope.vm.qemu.memory_failure", error, "memory of the VM failed"},
    {"MIGRATION", "kvmscope.vm.qemu.migration", info, "a migration went on"},
    {"POWERDOWN", "kvmscope.vm.qemu.powerdown", info, "the guest was asked to power down"},
    {"RESET", "kvmscope.vm.qemu.reset", info, "the VM was reset"},
    {"RESUME", "kvmscope.vm.qemu.resume", info, "the VM goes on"},
    {"SHUTDOWN", "kvmscope.vm.qemu.shutdown", info, "the VM was shut down"},
    {"STOP", "kvmscope.vm.qemu.stop", info, "the VM was stopped"},
    {"SUSPEND", "kvmscope.vm.qemu.suspend", info, "the guest sleeps"},
    {"WAKEUP", "kvmscope.vm.qemu.wakeup", info, "the guest woke up"},
    {"WATCHDOG", "kvmscope.vm.qemu.watchdog", warn, "the guest's watchdog fired"},
});

struct Member {
  const char* name;      ///< in QEMU's data
  std::string_view key;  ///< ours
  bool tenants;          ///< a word of its own kind, not of the host
};

constexpr auto kMembers = std::to_array<Member>({
    {"action", "qemu.action", true},
    {"guest", "qemu.guest", true},
    {"nospace", "qemu.nospace", false},
    {"operation", "qemu.operation", true},
    {"reason", "qemu.reason", true},
    {"recipient", "qemu.recipient", true},
    {"status", "qemu.status", true},
    {"type", "qemu.type", true},
    {"device", "qemu.device", false},
    {"error", "qemu.error", false},
    {"node-name", "qemu.node.name", false},
    {"path", "qemu.path", false},
    {"qom-path", "qemu.qom.path", false},
});

std::optional<core::Attribute> attribute(std::string_view key, const nlohmann::json& value) {
  if (value.is_boolean()) return core::Attribute{key, value.get<bool>()};
  if (!value.is_string()) return std::nullopt;
  return core::Attribute{key, virt::qmp_excerpt(value.get_ref<const std::string&>())};
}

bool is_word(const core::Attribute& attribute) {
  const auto* text = std::get_if<std::string>(&attribute.value);
  return text == nullptr || std::ranges::all_of(*text, [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
         });
}

}  // namespace

std::optional<QemuEvent> qemu_event(const virt::QmpEvent& event, std::uint64_t start_unix_ns,
                                    std::uint64_t now_unix_ns) {
  const auto row = std::ranges::find(kRows, event.name, &Row::name);
  if (row == kRows.end()) return std::nullopt;
  QemuEvent out{.record = {.event_name = row->record,
                           .severity = row->severity,
                           .time_unix_ns = std::clamp(event.unix_ns.value_or(now_unix_ns),
                                                      std::min(start_unix_ns, now_unix_ns), now_unix_ns),
                           .body = row->body,
                           .attributes = {}},
                .operators = {}};
  for (const Member& member : kMembers) {
    const auto value = event.data.find(member.name);
    if (value == event.data.end()) continue;
    if (auto made = attribute(member.key, *value))
      (member.tenants && is_word(*made) ? out.record.attributes : out.operators).push_back(std::move(*made));
  }
  return out;
}

}  // namespace kvmscope::hostd
