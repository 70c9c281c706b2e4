// SPDX-License-Identifier: Apache-2.0
#include "hostd/config.h"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/catch.h"
#include "tests/unit/hostd/temporary_directory.h"

namespace kvmscope::hostd {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using core::TenantId;

const fs::path kHere = fs::path(KVMSCOPE_SOURCE_DIR) / "tests/unit/hostd";

std::string content(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  REQUIRE(stream);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::vector<fs::path> yaml_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

std::string all_errors(const ConfigResult& result) {
  std::string text;
  if (!result)
    for (const ConfigError& error : result.error()) text += to_string(error) + "\n";
  return text;
}

Config good(const std::string& text) {
  const ConfigResult result = parse_config(text, "good.yaml");
  INFO(all_errors(result));
  REQUIRE(result);
  return *result;
}

std::string errors_of(const std::string& text) {
  return all_errors(parse_config(text, "bad.yaml"));
}

TEST_CASE("Every bad file gives exactly its errors") {
  const auto files = yaml_files(kHere / "bad");
  REQUIRE(files.size() >= 40);
  for (const fs::path& file : files) {
    INFO(file.filename());
    const ConfigResult result = parse_config(content(file), file.filename().string());
    CHECK_FALSE(result);
    CHECK(all_errors(result) == content(fs::path(file).replace_extension(".err")));
    // What stands where a secret may stand is never quoted.
    CHECK(all_errors(result).find("s3cr3t") == std::string::npos);
  }
  for (const auto& entry : fs::directory_iterator(kHere / "bad"))
    CHECK(fs::exists(fs::path(entry.path()).replace_extension(".yaml")));
}

TEST_CASE("Every good file, and the shipped example, is accepted") {
  auto files = yaml_files(kHere / "good");
  REQUIRE(files.size() >= 3);
  files.push_back(fs::path(KVMSCOPE_SOURCE_DIR) / "hostd/kvmscope.yaml");
  for (const fs::path& file : files) {
    INFO(file);
    const ConfigResult result = load_config(file.string());
    INFO(all_errors(result));
    CHECK(result.has_value());
  }
}

TEST_CASE("The shipped example says what the defaults are") {
  const auto example = load_config((fs::path(KVMSCOPE_SOURCE_DIR) / "hostd/kvmscope.yaml").string());
  REQUIRE(example);
  const Config defaults = good("");
  CHECK(example->interval == defaults.interval);
  CHECK(example->state_dir == defaults.state_dir);
  CHECK(example->control.socket == defaults.control.socket);
  CHECK(example->control.allow_users == defaults.control.allow_users);
  CHECK(example->libvirt.uri == defaults.libvirt.uri);
  CHECK(example->libvirt.rescan_interval == defaults.libvirt.rescan_interval);
  CHECK(example->libvirt.call_deadline == defaults.libvirt.call_deadline);
  CHECK(example->bpf.max_slots == defaults.bpf.max_slots);
  CHECK(example->bpf.spare_slots == defaults.bpf.spare_slots);
  CHECK(example->bpf.max_tenants == defaults.bpf.max_tenants);
  CHECK(example->bpf.qemu_names == defaults.bpf.qemu_names);
  CHECK(example->bpf.run_stats.every == defaults.bpf.run_stats.every);
  CHECK(example->bpf.run_stats.length == defaults.bpf.run_stats.length);
  CHECK(example->tenancy.sources == defaults.tenancy.sources);
  CHECK(example->tenancy.unattributed_after == defaults.tenancy.unattributed_after);
  CHECK(example->tenancy.linger == defaults.tenancy.linger);
  CHECK(example->tenancy.quota == defaults.tenancy.quota);
  CHECK(example->stream_for(TenantId{"x"}) == defaults.stream_for(TenantId{"x"}));
  CHECK(example->operator_stream() == defaults.operator_stream());
  // The override shows every setting of otlp_grpc with its default, but for what is marked as having none.
  auto shown = example->overrides.at(TenantId{"acme"}).stream.settings;
  const exporters::StreamConfig plain;
  CHECK(shown.timeout == plain.timeout);
  CHECK(shown.backoff_min == plain.backoff_min);
  CHECK(shown.backoff_max == plain.backoff_max);
  CHECK(shown.gzip == plain.gzip);
  CHECK(shown.tls == plain.tls);
}

TEST_CASE("Without a word every tenant has a file of its own, and the operator has one") {
  const Config config = good("");
  const auto acme = config.stream_for(TenantId{"acme"});
  REQUIRE(acme);
  CHECK(acme->kind == exporters::StreamConfig::Kind::file);
  CHECK(acme->path == "/var/lib/kvmscope/tenants/acme.jsonl");
  CHECK(config.operator_stream()->path == "/var/lib/kvmscope/operator.jsonl");
  CHECK_FALSE(config.show_host(TenantId{"acme"}));
  CHECK(config.tenant_quotas().empty());
  CHECK(good("state_dir: /srv/k\n").stream_for(TenantId{"acme"})->path == "/srv/k/tenants/acme.jsonl");
}

TEST_CASE("A full configuration arrives where it belongs") {
  const Config config = good(content(kHere / "good/public_cloud.yaml"));
  CHECK(config.host.id == "hv-17");
  CHECK(config.host.region == "eu-1");
  CHECK(config.host.availability_zone == "a");
  CHECK(config.interval == 30s);
  CHECK(config.log.level == LogLevel::warn);
  CHECK(config.log.format == LogFormat::json);
  CHECK(config.control.allow_users == std::vector<std::string>{"root", "nova"});
  CHECK(config.control.allow_groups == std::vector<std::string>{"ops"});
  CHECK(config.bpf.max_slots == 256);
  CHECK(config.bpf.spare_slots == 8);
  CHECK(config.bpf.identity_hook == bpf::IdentityHook::getrq);
  CHECK(config.bpf.run_stats.every == 5min);
  CHECK(config.bpf.run_stats.length == 0ms);
  CHECK(config.tenancy.sources ==
        std::vector<tenancy::TenancySource>{tenancy::TenancySource::nova, tenancy::TenancySource::rules});
  REQUIRE(config.tenancy.rules.size() == 2);
  CHECK(config.tenancy.rules[0].name_pattern == "lab-[!0-9]*");
  CHECK(config.tenancy.rules[0].tenant.value == "lab");
  CHECK(config.tenancy.rules[1].uuid == "0b9f1a52-3f0e-4c6e-9d7e-2f6f0a1c7e11");  // as libvirt writes it
  CHECK(config.tenancy.quota.slots == 128);
  CHECK(config.tenancy.quota.ring_bytes == 131072);
  CHECK(config.tenancy.quota.disks_per_vm == 16);
  CHECK(config.tenancy.quota.vcpus_per_vm == 64);
  CHECK(config.tenancy.quota.nics_per_vm == 8);
  CHECK_FALSE(config.operator_stream());
}

TEST_CASE("An override is merged over the defaults") {
  const Config config = good(content(kHere / "good/public_cloud.yaml"));
  const auto other = config.stream_for(TenantId{"other"});
  REQUIRE(other);
  CHECK(other->kind == exporters::StreamConfig::Kind::otlp_grpc);
  CHECK(other->endpoint == "[2001:db8::1]:4317");
  CHECK(other->token_file == "/etc/kvmscope/tokens/other");
  CHECK(other->headers == std::map<std::string, std::string>{{"x-region", "eu-1"}, {"x-tenant-id", "other"}});
  CHECK(other->timeout == 5s);
  CHECK(other->tls);
  CHECK_FALSE(other->gzip);

  const auto local = config.stream_for(TenantId{"local"});
  REQUIRE(local);
  CHECK(local->endpoint == "localhost:4317");
  CHECK_FALSE(local->tls);
  CHECK(local->timeout == 5s);
  CHECK(local->headers ==
        std::map<std::string, std::string>{{"x-scope", "tenant-local"}, {"x-tenant-id", "local"}});
  CHECK(config.show_host(TenantId{"local"}));
  CHECK_FALSE(config.show_host(TenantId{"other"}));

  CHECK_FALSE(config.stream_for(TenantId{"quiet"}));
  const auto onfile = config.stream_for(TenantId{"onfile"});
  REQUIRE(onfile);
  CHECK(onfile->kind == exporters::StreamConfig::Kind::file);
  CHECK(onfile->path == "/srv/kvmscope/tenants/onfile.jsonl");
  CHECK(onfile->keep_files == 7);

  const auto quotas = config.tenant_quotas();
  REQUIRE(quotas.size() == 1);
  CHECK(quotas.at(TenantId{"local"}).slots == 4);
  CHECK(quotas.at(TenantId{"local"}).ring_bytes == 131072);  // inherited
}

TEST_CASE("No tenant's id reaches another's file, a directory above, or another header") {
  const Config config = good("tenants:\n  default: {path: \"/srv/t/${tenant.id}\"}\n");
  CHECK(config.stream_for(TenantId{"../../etc/cron.d/x"})->path ==
        "/srv/t/%2E%2E%2F%2E%2E%2Fetc%2Fcron%2Ed%2Fx");
  CHECK(config.stream_for(TenantId{".."})->path == "/srv/t/%2E%2E");
  // a's rotated file is a.1: nobody else's.
  CHECK(config.stream_for(TenantId{"a.1"})->path == "/srv/t/a%2E1");
  CHECK(config.stream_for(TenantId{"a\r\nx-tenant-id: b"})->headers.at("x-tenant-id") ==
        "a%0D%0Ax-tenant-id%3A%20b");
}

TEST_CASE("Numbers in a quoted or plain tenant name stay what they are") {
  const Config config = good("tenancy: {rules: [{name: a, tenant: 0123}, {name: b, tenant: 1e3}]}\n");
  CHECK(config.tenancy.rules[0].tenant.value == "0123");
  CHECK(config.tenancy.rules[1].tenant.value == "1e3");
}

TEST_CASE("An error that tenants inherit is told once") {
  CHECK(errors_of("tenants:\n"
                  "  default: {exporter: otlp_grpc, endpoint: \"c.example:1\", token_file: /t, tls: "
                  "{enabled: false}}\n"
                  "  overrides:\n    a: {show_host: true}\n    b: {show_host: true}\n") ==
        "bad.yaml:2: tenants.default.token_file: a token would go to \"c.example:1\" in clear text: enable "
        "TLS (tls: "
        "{enabled: true}), or send to this host itself\n");
}

TEST_CASE("Sizes and shapes that are meant to hurt are refused") {
  CHECK(errors_of(std::string((1U << 20) + 1, ' ')) ==
        "bad.yaml: is larger than 1 MiB: is this the right file?\n");
  CHECK(errors_of(std::string("interval: 10s\0", 14)) ==
        "bad.yaml: holds a NUL byte: is this a text file?\n");
  CHECK_FALSE(errors_of(std::string(100'000, '[')).empty());
  CHECK_FALSE(errors_of(std::string(100'000, '{')).empty());
  std::string many = "a: [";
  for (int i = 0; i < 60'000; ++i) many += "1,";
  CHECK(errors_of(many + "]\n") == "bad.yaml:1: more than 50000 values: is this the right file?\n");
  std::string overrides = "tenants:\n  overrides:\n";
  for (int i = 0; i < 10'000; ++i) overrides += "    t" + std::to_string(i) + ": {keep: 2}\n";
  CHECK(good(overrides).overrides.size() == 10'000);
}

TEST_CASE("What the YAML library quotes from the file is made printable") {
  CHECK(errors_of("log: {level: \"\\\xa7\"}\n") ==
        "bad.yaml:1: is not YAML: unknown escape character: \\xa7: check indentation (spaces, no tabs), "
        "colons and quotes near "
        "here\n");
}

TEST_CASE("A file that cannot be read is an error like any other") {
  CHECK(all_errors(load_config("/nonexistent/kvmscope.yaml")) ==
        "/nonexistent/kvmscope.yaml: cannot be read: No such file or directory: name a file that this user "
        "may read: "
        "--config FILE\n");
  const std::string odd =
      ": is not a regular file (but a directory, a pipe or a device): write the configuration into a file: "
      "--config FILE\n";
  CHECK(all_errors(load_config("/")) == "/" + odd);
  CHECK(all_errors(load_config("/dev/zero")) == "/dev/zero" + odd);
  // Whoever opened it would wait for a writer.
  const tests::TemporaryDirectory folder;
  const std::string fifo = folder.path() / "kvmscope.yaml";
  REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
  CHECK(all_errors(load_config(fifo)) == fifo + odd);
}

}  // namespace
}  // namespace kvmscope::hostd
