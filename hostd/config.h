// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <compare>
#include <cstdint>
#include <expected>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bpf/tracer.h"
#include "exporters/stream.h"
#include "hostd/core/ids.h"
#include "tenancy/registry.h"

namespace kvmscope::hostd {

enum class LogLevel : std::uint8_t { debug, info, warn, error };
enum class LogFormat : std::uint8_t { text, json };
enum class Exporter : std::uint8_t { none, file, otlp_grpc };

/// What the operator calls this host. Empty: see default_host_id().
struct HostConfig {
  std::string id;
  std::string region;
  std::string availability_zone;
};

struct LogConfig {
  LogLevel level = LogLevel::info;
  LogFormat format = LogFormat::text;
};

/// Who may talk to the daemon, beside root and the daemon's own user.
struct ControlConfig {
  std::string socket = "/run/kvmscope/control.sock";
  std::vector<std::string> allow_users = {"root"};
  std::vector<std::string> allow_groups;
};

struct LibvirtConfig {
  std::string uri = "qemu:///system";
  std::string cgroup_root;  ///< empty: found by itself
  std::chrono::milliseconds rescan_interval{10'000};
  std::chrono::milliseconds call_deadline{5'000};
};

/// A monitor of our own in each QEMU.
struct QmpConfig {
  std::string socket;  ///< path with `${vm.uuid}`; empty: none
};

/// The kernel's run-time statistics are on for `length` once in `every`. A length of 0: never.
struct DutyCycle {
  std::chrono::milliseconds every{60'000};
  std::chrono::milliseconds length{1'000};
};

struct BpfConfig {
  std::uint32_t max_slots = 4096;
  std::uint32_t spare_slots = 16;
  std::uint32_t max_tenants = 1024;
  bpf::IdentityHook identity_hook = bpf::IdentityHook::automatic;
  std::vector<std::string> qemu_names = {"qemu-system-*", "qemu-kvm"};
  DutyCycle run_stats;
};

struct TenancyConfig {
  std::vector<tenancy::TenancySource> sources = {
      tenancy::TenancySource::nova, tenancy::TenancySource::own_metadata, tenancy::TenancySource::rules};
  std::chrono::milliseconds unattributed_after{60'000};
  std::chrono::milliseconds linger{2'000};
  std::vector<tenancy::TenantRule> rules;
  tenancy::Quota quota;
};

/// A stream before it is somebody's: strings may hold `${tenant.id}`.
struct StreamTemplate {
  Exporter exporter = Exporter::file;
  exporters::StreamConfig settings;
  bool show_host = false;  ///< tell the tenant the hypervisor's host.id
};

/// A tenant with an entry of its own: everything is already merged over the defaults.
struct TenantOverride {
  StreamTemplate stream;
  tenancy::Quota quota;
};

/// The whole configuration, checked: every value is possible by itself and agrees with all others.
struct Config {
  HostConfig host;
  std::chrono::milliseconds interval{10'000};
  LogConfig log;
  std::string state_dir = "/var/lib/kvmscope";
  ControlConfig control;
  LibvirtConfig libvirt;
  QmpConfig qmp;
  BpfConfig bpf;
  TenancyConfig tenancy;
  StreamTemplate default_stream;
  std::map<core::TenantId, TenantOverride> overrides;
  StreamTemplate operator_template;

  /// The tenant's stream with `${tenant.id}` filled in (expand_tenant()); nothing if it is to have none.
  std::optional<exporters::StreamConfig> stream_for(const core::TenantId& tenant) const;
  /// The operator's own stream; nothing if there is none.
  std::optional<exporters::StreamConfig> operator_stream() const;
  /// Whether this tenant may see the hypervisor's host.id.
  bool show_host(const core::TenantId& tenant) const;
  /// Quotas that differ from tenancy.quota.
  std::map<core::TenantId, tenancy::Quota> tenant_quotas() const;
};

/// One thing that is wrong in a configuration file.
struct ConfigError {
  std::string file;
  unsigned line = 0;    ///< from 1; 0: the file as a whole
  std::string key;      ///< path: tenants.default.endpoint; empty: the document
  std::string message;  ///< what is wrong, with the value found
  std::string remedy;   ///< what to write instead
  auto operator<=>(const ConfigError&) const = default;
};

/// "file:line: key: message: remedy", one line, safe to print whatever the file contained.
std::string to_string(const ConfigError& error);

/// Everything that is wrong, in the order of the lines; never empty.
using ConfigErrors = std::vector<ConfigError>;
using ConfigResult = std::expected<Config, ConfigErrors>;

/// Parses YAML text (one document, at most 1 MiB, no anchors or aliases). `file` is what errors call it.
/// Pure: names no user, opens no file.
ConfigResult parse_config(std::string_view text, const std::string& file);
/// Reads the file and parses it.
ConfigResult load_config(const std::string& path);

}  // namespace kvmscope::hostd
