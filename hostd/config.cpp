// SPDX-License-Identifier: Apache-2.0
#include "hostd/config.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "bpf/abi.h"
#include "exporters/config_check.h"
#include "hostd/config_paths.h"
#include "hostd/config_section.h"
#include "hostd/config_values.h"
#include "hostd/core/unique_fd.h"
#include "hostd/tenant_template.h"
#include "hostd/yaml_tree.h"

namespace kvmscope::hostd {
namespace {

using namespace std::chrono_literals;

constexpr std::pair<std::string_view, LogLevel> kLogLevels[] = {{"debug", LogLevel::debug},
                                                                {"info", LogLevel::info},
                                                                {"warn", LogLevel::warn},
                                                                {"error", LogLevel::error}};
constexpr std::pair<std::string_view, LogFormat> kLogFormats[] = {{"text", LogFormat::text},
                                                                  {"json", LogFormat::json}};
constexpr std::pair<std::string_view, bpf::IdentityHook> kIdentityHooks[] = {
    {"auto", bpf::IdentityHook::automatic},
    {"io_start", bpf::IdentityHook::io_start},
    {"getrq", bpf::IdentityHook::getrq}};
constexpr std::pair<std::string_view, tenancy::TenancySource> kSources[] = {
    {"nova", tenancy::TenancySource::nova},
    {"own_metadata", tenancy::TenancySource::own_metadata},
    {"rules", tenancy::TenancySource::rules}};
constexpr std::pair<std::string_view, Exporter> kExporters[] = {
    {"file", Exporter::file}, {"otlp_grpc", Exporter::otlp_grpc}, {"none", Exporter::none}};

void read_log(Section& root, LogConfig& log) {
  Section section(root, "log");
  section.choice<LogLevel>("level", log.level, kLogLevels);
  section.choice<LogFormat>("format", log.format, kLogFormats);
}

void read_host(Section& root, HostConfig& host) {
  Section section(root, "host");
  section.text("id", host.id, check_label);
  section.text("region", host.region, check_label);
  section.text("availability_zone", host.availability_zone, check_label);
}

void read_control(Section& root, ControlConfig& control) {
  Section section(root, "control");
  section.text("socket", control.socket, check_socket_path);
  section.texts("allow_users", control.allow_users, check_name);
  section.texts("allow_groups", control.allow_groups, check_name);
}

void read_libvirt(Section& root, LibvirtConfig& libvirt) {
  Section section(root, "libvirt");
  section.text("uri", libvirt.uri, check_libvirt_uri);
  section.text("cgroup_root", libvirt.cgroup_root, check_optional_path);
  section.duration("rescan_interval", libvirt.rescan_interval, 1s, 1h);
  section.duration("call_deadline", libvirt.call_deadline, 100ms, 1min);
}

void read_qmp(Section& root, QmpConfig& qmp) {
  Section section(root, "qmp");
  section.text("socket", qmp.socket, check_qmp_socket);
}

void read_bpf(Section& root, BpfConfig& bpf) {
  Section section(root, "bpf");
  section.integer("max_slots", bpf.max_slots, 2, 65'536);
  section.integer("spare_slots", bpf.spare_slots, 1, 4'096);
  section.integer("max_tenants", bpf.max_tenants, 2, 65'536);
  section.choice<bpf::IdentityHook>("identity_hook", bpf.identity_hook, kIdentityHooks);
  section.texts("qemu_names", bpf.qemu_names, check_qemu_name);
  if (section.has_empty_list("qemu_names"))
    section.complain("qemu_names", "names no QEMU at all",
                     "write [\"qemu-system-*\", qemu-kvm], or remove the key");
  if (bpf.qemu_names.size() > KV_NAMES)
    section.complain(
        "qemu_names",
        fmt::format("are {}, of which the programs compare {} at most", bpf.qemu_names.size(), int{KV_NAMES}),
        "write one name with a '*' for several");
  if (bpf.spare_slots >= bpf.max_slots)
    section.complain(section.has("spare_slots") ? "spare_slots" : "max_slots",
                     fmt::format("leaves no slot for a VM: spare_slots is {} and max_slots {}",
                                 bpf.spare_slots, bpf.max_slots),
                     "make max_slots larger than spare_slots and the VMs of this host together");

  Section duty(section, "run_stats_duty");
  duty.duration("every", bpf.run_stats.every, 1s, 1h);
  duty.duration("for", bpf.run_stats.length, 0ms, 1h);
  if (bpf.run_stats.length >= bpf.run_stats.every)
    duty.complain(duty.has("for") ? "for" : "every",
                  fmt::format("must be shorter than every: on for {} in {} is never off",
                              duration_text(bpf.run_stats.length), duration_text(bpf.run_stats.every)),
                  "write for example {every: 60s, for: 1s}");
}

void read_quota(Section& parent, tenancy::Quota& quota, std::uint32_t max_slots) {
  Section section(parent, "quota");
  if (section.integer("slots", quota.slots, 1, 65'536) && quota.slots > max_slots)
    section.complain("slots",
                     fmt::format("is more than the host has: {} of bpf.max_slots {}", quota.slots, max_slots),
                     "lower it, or raise bpf.max_slots");
  section.integer("disks_per_vm", quota.disks_per_vm, 1, tenancy::Quota::kMostDisks);
  section.integer("vcpus_per_vm", quota.vcpus_per_vm, 1, 4'096);
  section.integer("nics_per_vm", quota.nics_per_vm, 1, tenancy::Quota::kMostNics);
  std::uint64_t ring_bytes = quota.ring_bytes;
  if (!section.size("ring_bytes", ring_bytes, 4'096, 1U << 28)) return;
  if (std::has_single_bit(ring_bytes))
    quota.ring_bytes = static_cast<std::uint32_t>(ring_bytes);
  else
    section.complain("ring_bytes", fmt::format("must be a power of two (got {})", ring_bytes),
                     fmt::format("write for example {}", size_text(std::bit_ceil(ring_bytes))));
}

void read_rule(Section& section, std::vector<tenancy::TenantRule>& rules) {
  tenancy::TenantRule rule;
  section.text("uuid", rule.uuid, check_uuid);
  section.text("name", rule.name_pattern, check_pattern);
  section.text("tenant", rule.tenant.value, check_name);
  if (section.has("uuid") && section.has("name"))
    section.complain("name", "stands beside uuid in one rule", "keep one of them, or make it two rules");
  if (!section.has("uuid") && !section.has("name"))
    section.complain("name", "is missing, and so is uuid",
                     "say which VMs the rule is for: name: \"web-*\", or uuid");
  if (!section.has("tenant")) section.complain("tenant", "is missing", "say whose these VMs are");
  std::ranges::transform(rule.uuid, rule.uuid.begin(),
                         [](char c) { return c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c; });
  const auto same = std::ranges::find_if(rules, [&](const tenancy::TenantRule& earlier) {
    return earlier.uuid == rule.uuid && earlier.name_pattern == rule.name_pattern;
  });
  if (same != rules.end() && !(rule.uuid.empty() && rule.name_pattern.empty()))
    section.complain(rule.uuid.empty() ? "name" : "uuid", "is never reached: an earlier rule has the same",
                     "remove one of them");
  rules.push_back(std::move(rule));
}

void read_tenancy(Section& root, TenancyConfig& tenancy, std::uint32_t max_slots) {
  Section section(root, "tenancy");
  section.choices<tenancy::TenancySource>("sources", tenancy.sources, kSources);
  if (section.has("sources")) {
    if (section.has_empty_list("sources"))
      section.complain("sources", "names no source: no VM would ever have an owner",
                       "write [nova, own_metadata, rules]");
    auto sorted = tenancy.sources;
    std::ranges::sort(sorted);
    if (std::ranges::adjacent_find(sorted) != sorted.end())
      section.complain("sources", "names a source twice", "list each once, the most trusted first");
  }
  section.duration("unattributed_after", tenancy.unattributed_after, 1s, 24h);
  section.duration("linger", tenancy.linger, 100ms, 1min);
  const YamlNode* rules = section.sequence("rules");
  for (std::size_t i = 0; rules != nullptr && i < rules->children.size(); ++i) {
    Section rule(section.problems(), rules->children[i], section.item_path("rules", i));
    read_rule(rule, tenancy.rules);
  }
  if (!tenancy.rules.empty() &&
      std::ranges::find(tenancy.sources, tenancy::TenancySource::rules) == tenancy.sources.end())
    section.complain("rules", "are given, but sources does not list rules: they would never be used",
                     "add rules to sources, or remove the rules");
  read_quota(section, tenancy.quota, max_slots);
}

// --- streams
// ---------------------------------------------------------------------------------------------------

/// A path in which `${tenant.id}` may stand.
std::optional<Complaint> check_file_template(std::string_view value) {
  auto complaint = check_variables(value);
  return complaint ? complaint : check_path(value);
}

void read_headers(Section& stream, std::map<std::string, std::string>& headers) {
  Section section(stream, "headers", Section::Secret{});
  for (const YamlNode& header : section.entries()) {
    auto complaint = check_header_name(header.key);
    if (!complaint && header.kind != YamlNode::Kind::scalar)
      complaint =
          Complaint{"must be a text", "write one value; an empty text (\"\") removes an inherited header"};
    if (!complaint) complaint = check_header_value(header.scalar);
    if (complaint)
      section.complain(header.key, std::move(complaint->message), std::move(complaint->remedy));
    else if (header.scalar.empty())
      headers.erase(header.key);
    else
      headers[header.key] = header.scalar;
  }
}

void read_tls(Section& stream, exporters::StreamConfig& settings) {
  Section section(stream, "tls", Section::Secret{});
  section.boolean("enabled", settings.tls);
  section.text("ca_file", settings.ca_file, check_credential_path);
  section.text("cert_file", settings.cert_file, check_credential_path);
  section.text("key_file", settings.key_file, check_credential_path);
  section.text("server_name", settings.server_name, check_host_name);
  for (const std::string_view key : {"ca_file", "cert_file", "key_file", "server_name"})
    if (!settings.tls && section.has(key))
      section.complain(key, "has no meaning while tls.enabled is false", "remove it, or enable TLS");
  if (!section.has("cert_file") && !section.has("key_file")) return;
  if (settings.cert_file.empty() && !settings.key_file.empty())
    section.complain("key_file", "is given without cert_file",
                     "name the client certificate too, or remove the key");
  if (!settings.cert_file.empty() && settings.key_file.empty())
    section.complain("cert_file", "is given without key_file", "name the certificate's private key too");
}

/// A setting of another exporter than the stream's is a misunderstanding. Only what stands in this section
/// counts: an override may choose another exporter than the defaults whose settings it inherits.
void check_belongs(Section& section, Exporter exporter) {
  if (exporter == Exporter::none) return;
  const bool file = exporter == Exporter::file;
  constexpr std::string_view kOfFiles[] = {"path", "rotate", "keep"};
  constexpr std::string_view kOfGrpc[] = {"endpoint", "tls",     "token_file", "headers",
                                          "timeout",  "backoff", "gzip"};
  const std::span<const std::string_view> foreign =
      file ? std::span<const std::string_view>(kOfGrpc) : kOfFiles;
  for (const std::string_view key : foreign)
    if (section.has(key))
      section.complain(
          key,
          fmt::format("has no meaning for this stream, whose exporter is {}", file ? "file" : "otlp_grpc"),
          fmt::format("remove it, or write exporter: {}", file ? "otlp_grpc" : "file"));
}

/// What must hold between the settings of one stream. Reported only where this section has a part in it: the
/// defaults' own mistakes are not repeated for each tenant.
void check_stream(Section& section, const StreamTemplate& stream) {
  check_belongs(section, stream.exporter);
  const exporters::StreamConfig& settings = stream.settings;
  if (settings.backoff_min > settings.backoff_max && section.has("backoff"))
    section.complain("backoff",
                     fmt::format("has a min of {} above its max of {}", duration_text(settings.backoff_min),
                                 duration_text(settings.backoff_max)),
                     "make min the smaller one");
  if (stream.exporter != Exporter::otlp_grpc) return;
  if (settings.endpoint.empty() && !section.has("endpoint") && section.has("exporter"))
    section.complain("endpoint", "is missing: otlp_grpc must know where to send to",
                     "write for example collector.example:4317");
  const bool concerned =
      section.has("token_file") || section.has("endpoint") || section.has("tls") || section.has("exporter");
  if (!settings.token_file.empty() && !settings.tls && !settings.endpoint.empty() &&
      !is_loopback(settings.endpoint) && concerned)
    section.complain(section.has("token_file") ? "token_file" : "endpoint",
                     fmt::format("a token would go to {} in clear text", quoted(settings.endpoint)),
                     "enable TLS (tls: {enabled: true}), or send to this host itself");
}

exporters::StreamConfig expanded(const exporters::StreamConfig& settings, Exporter exporter,
                                 const core::TenantId& tenant) {
  exporters::StreamConfig out = settings;
  out.kind = exporter == Exporter::file ? exporters::StreamConfig::Kind::file
                                        : exporters::StreamConfig::Kind::otlp_grpc;
  for (std::string* text : {&out.path, &out.token_file, &out.ca_file, &out.cert_file, &out.key_file})
    *text = expand_tenant(*text, tenant);
  for (auto& [name, value] : out.headers) value = expand_tenant(value, tenant);
  return out;
}

/// The exporters' own check of what they will be given for this tenant: what they would refuse later must not
/// pass here. `inherited` is what they say of the defaults, which is told there and not again. Returns what
/// they say.
std::vector<exporters::StreamProblem> check_expanded(
    Section& section, const StreamTemplate& stream, const core::TenantId& tenant, bool tell,
    const std::vector<exporters::StreamProblem>& inherited = {}) {
  if (stream.exporter == Exporter::none) return {};
  auto found = exporters::problems(expanded(stream.settings, stream.exporter, tenant));
  for (const exporters::StreamProblem& problem : found) {
    const bool told = std::ranges::any_of(inherited, [&](const exporters::StreamProblem& other) {
      return other.key == problem.key && other.message == problem.message;
    });
    if (tell && !told)
      section.complain(problem.key, problem.message + ", once ${tenant.id} is filled in", problem.remedy);
  }
  return found;
}

void read_stream(Section& section, StreamTemplate& stream) {
  exporters::StreamConfig& settings = stream.settings;
  section.choice<Exporter>("exporter", stream.exporter, kExporters);
  section.text("path", settings.path, check_file_template);
  section.size("rotate", settings.rotate_bytes, 64U << 10, std::uint64_t{1} << 40);
  section.integer("keep", settings.keep_files, 1, 1'000);
  section.text("endpoint", settings.endpoint, check_endpoint);
  read_tls(section, settings);
  section.text("token_file", settings.token_file, check_credential_path);
  read_headers(section, settings.headers);
  section.duration("timeout", settings.timeout, 100ms, 5min);
  {
    Section backoff(section, "backoff");
    backoff.duration("min", settings.backoff_min, 10ms, 10min);
    backoff.duration("max", settings.backoff_max, 10ms, 1h);
  }
  section.boolean("gzip", settings.gzip);
  std::uint64_t queue = settings.queue_bytes;
  section.size("queue", queue, 64U << 10, std::uint64_t{1} << 32);
  settings.queue_bytes = queue;
  check_stream(section, stream);
}

/// The operator is no tenant: nothing of its stream can depend on one.
void refuse_tenant_variable(Problems& problems, const YamlNode& node, const std::string& path) {
  if (node.kind == YamlNode::Kind::scalar && node.scalar.find(kTenantVariable) != std::string::npos)
    problems.add(node.line, path, "holds ${tenant.id}, but the operator's stream is no tenant's",
                 "write a fixed value");
  for (const YamlNode& child : node.children)
    if (!child.key.empty()) refuse_tenant_variable(problems, child, path + "." + child.key);
}

void read_operator(Section& root, StreamTemplate& stream) {
  if (const YamlNode* node = root.find("operator"))
    refuse_tenant_variable(root.problems(), *node, "operator");
  Section section(root, "operator");
  const std::size_t before = section.problems().errors.size();
  read_stream(section, stream);
  check_expanded(section, stream, {}, section.problems().errors.size() == before);
}

void read_tenants(Section& root, Config& config, FilePaths& paths) {
  Section section(root, "tenants");
  const ConfigErrors& errors = root.problems().errors;
  std::vector<exporters::StreamProblem> inherited;
  {
    Section defaults(section, "default");
    const std::size_t before = errors.size();
    read_stream(defaults, config.default_stream);
    // An id of any length may come: if the longest fits, all do.
    const core::TenantId longest{std::string(kMaxTenantWord + 1, 'x')};
    inherited = check_expanded(defaults, config.default_stream, longest, errors.size() == before);
    defaults.boolean("show_host", config.default_stream.show_host);
    if (config.default_stream.exporter == Exporter::file) {
      const std::string& path = config.default_stream.settings.path;
      if (path.find(kTenantVariable) == std::string::npos)
        defaults.complain("path", fmt::format("would put all tenants into one file (got {})", quoted(path)),
                          "write ${tenant.id} somewhere in it");
      else
        paths.set_template(path);
    }
  }
  Section overrides(section, "overrides");
  for (const YamlNode& entry : overrides.entries()) {
    if (auto complaint = check_name(entry.key)) {
      overrides.complain(entry.key, std::move(complaint->message), std::move(complaint->remedy));
      continue;
    }
    const core::TenantId tenant{entry.key};
    TenantOverride merged{config.default_stream, config.tenancy.quota};
    Section own(root.problems(), entry, overrides.path_of(entry.key));
    const std::size_t before = errors.size();
    read_stream(own, merged.stream);
    check_expanded(own, merged.stream, tenant, errors.size() == before, inherited);
    own.boolean("show_host", merged.stream.show_host);
    read_quota(own, merged.quota, config.bpf.max_slots);
    if (merged.stream.exporter == Exporter::file)
      paths.add(tenant, expand_tenant(merged.stream.settings.path, tenant), entry.line, own.path_of("path"));
    config.overrides.insert_or_assign(tenant, std::move(merged));
  }
}

Config read_config(Problems& problems, const YamlNode& document) {
  Config config;
  Section root(problems, document, "");
  read_host(root, config.host);
  root.duration("interval", config.interval, 1s, 1h);
  read_log(root, config.log);
  root.text("state_dir", config.state_dir, check_path);
  read_control(root, config.control);
  read_libvirt(root, config.libvirt);
  read_qmp(root, config.qmp);
  read_bpf(root, config.bpf);
  read_tenancy(root, config.tenancy, config.bpf.max_slots);

  config.default_stream.settings.path = fmt::format("{}/tenants/{}.jsonl", config.state_dir, kTenantVariable);
  config.default_stream.settings.headers = {{"x-tenant-id", std::string(kTenantVariable)}};
  config.operator_template.settings.path = config.state_dir + "/operator.jsonl";
  FilePaths paths;
  read_tenants(root, config, paths);
  read_operator(root, config.operator_template);
  if (config.operator_template.exporter == Exporter::file) {
    const YamlNode* node = root.find("operator");
    paths.add({}, config.operator_template.settings.path, node != nullptr ? node->line : 1, "operator.path");
  }
  paths.check(problems);
  return config;
}

}  // namespace

std::optional<exporters::StreamConfig> Config::stream_for(const core::TenantId& tenant) const {
  const auto own = overrides.find(tenant);
  const StreamTemplate& stream = own != overrides.end() ? own->second.stream : default_stream;
  if (stream.exporter == Exporter::none) return std::nullopt;
  return expanded(stream.settings, stream.exporter, tenant);
}

std::optional<exporters::StreamConfig> Config::operator_stream() const {
  if (operator_template.exporter == Exporter::none) return std::nullopt;
  return expanded(operator_template.settings, operator_template.exporter, {});
}

bool Config::show_host(const core::TenantId& tenant) const {
  const auto own = overrides.find(tenant);
  return own != overrides.end() ? own->second.stream.show_host : default_stream.show_host;
}

std::map<core::TenantId, tenancy::Quota> Config::tenant_quotas() const {
  std::map<core::TenantId, tenancy::Quota> quotas;
  for (const auto& [tenant, own] : overrides)
    if (own.quota != tenancy.quota) quotas.emplace(tenant, own.quota);
  return quotas;
}

std::string to_string(const ConfigError& error) {
  std::string out = printable(error.file, 4'096);
  if (error.line != 0) out += fmt::format(":{}", error.line);
  if (!error.key.empty()) out += ": " + printable(error.key, 512);
  return fmt::format("{}: {}: {}", out, error.message, error.remedy);
}

ConfigResult parse_config(std::string_view text, const std::string& file) {
  Problems problems{file, {}};
  const auto document = parse_yaml(text);
  if (!document) {
    problems.add(document.error().line, "", document.error().message, document.error().remedy);
    return std::unexpected(std::move(problems.errors));
  }
  Config config = read_config(problems, *document);
  if (problems.errors.empty()) return config;
  std::ranges::sort(problems.errors);
  return std::unexpected(std::move(problems.errors));
}

ConfigResult load_config(const std::string& path) {
  const auto refuse = [&](std::string message, std::string remedy) {
    return std::unexpected(ConfigErrors{{path, 0, "", std::move(message), std::move(remedy)}});
  };
  const auto unreadable = [&](int why) {
    return refuse(fmt::format("cannot be read: {}", std::strerror(why)),
                  "name a file that this user may read: --config FILE");
  };
  // A FIFO that nobody writes to must not keep us: O_NONBLOCK, of which a regular file takes no notice.
  const core::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return unreadable(errno);
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0) return unreadable(errno);
  if (!S_ISREG(info.st_mode))
    return refuse("is not a regular file (but a directory, a pipe or a device)",
                  "write the configuration into a file: --config FILE");
  std::string text;
  std::array<char, 65'536> chunk{};
  // One byte more than parse_config() takes is enough for it to refuse.
  while (text.size() <= kMaxYamlBytes) {
    const ssize_t got = ::read(fd.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return unreadable(errno);
    if (got == 0) break;
    text.append(chunk.data(), static_cast<std::size_t>(got));
  }
  return parse_config(text, path);
}

}  // namespace kvmscope::hostd
