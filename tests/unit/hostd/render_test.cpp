// SPDX-License-Identifier: Apache-2.0
#include "hostd/render.h"

#include <fstream>
#include <sstream>
#include <string>

#include "hostd/human.h"
#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

constexpr std::uint64_t kNow = 1'700'000'000'000'000'000;

/// What a person has looked at and found right.
std::string golden(const std::string& name) {
  std::ifstream stream(std::string(KVMSCOPE_SOURCE_DIR "/tests/unit/hostd/golden/") + name + ".txt");
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

TopView reading() {
  return {kNow,
          {{"web-1", "u1", "4f1a0c2e9b7d4e6f8a5b3c1d2e4f6a8b", "Acme", "vda", "read", 1'234, 5'054'464,
            850'000, 1'200'000, 20'500'000, 1'500, 0, 10},
           {"web-1", "u1", "4f1a0c2e9b7d4e6f8a5b3c1d2e4f6a8b", "Acme", "vda", "flush", 3, 0, 2'000'000,
            2'100'000, 2'200'000, std::nullopt, 0, 10},
           {"a-database-with-a-rather-long-name", "u2", "lab", "", "sdb", "write", 80, 41'943'040, 30'500'000,
            31'000'000, 35'000'000, 900, 7, 10},
           {"idle", "u3", "", "", "vda", "read", 0, 0, std::nullopt, std::nullopt, std::nullopt, std::nullopt,
            0, 10}}};
}

TEST_CASE("top: busiest first, people's units") {
  CHECK(render_top(reading(), 0, {}) == golden("top"));
}

TEST_CASE("top: a narrow terminal loses detail, not alignment") {
  CHECK(render_top(reading(), 2, {80, false}) == golden("top_80_columns"));
  CHECK(render_top(reading(), 2, {52, false}) == golden("top_52_columns"));
}

TEST_CASE("No line is wider than the terminal as long as its columns can give way") {
  for (std::size_t columns = 52; columns < 130; ++columns) {
    std::istringstream lines(render_top(reading(), 0, {columns, false}));
    for (std::string line; std::getline(lines, line);) CHECK(display_width(line) <= columns);
  }
}

TEST_CASE("top: before the first reading") {
  CHECK(render_top({}, 0, {}) == "No reading yet: the first comes after one interval.\n");
}

TEST_CASE("vms") {
  VmView web{"0b9f1a52-3f0e-4c6e-9d7e-2f6f0a1c7e11",
             "web-1",
             3,
             "4f1a",
             "Acme",
             "nova",
             "attributed",
             4711,
             2,
             5,
             kNow - 3'600'000'000'000,
             "e",
             {},
             {},
             ""};
  web.nics = {{"net0", "52:54:00:00:00:01", "vnet0", "0", ""}};
  web.disks = {{"vda", "/img", "0", "file", ""}, {"vdb", "rbd:x", "", "invisible", "network storage"}};
  VmView unknown{"",
                 "",
                 std::nullopt,
                 "",
                 "",
                 "",
                 "unnamed",
                 99,
                 1,
                 1,
                 kNow - 2'000'000'000,
                 "",
                 {},
                 {},
                 "libvirt has not named it"};
  CHECK(render_vms({web, unknown}, kNow, {}) == golden("vms"));
  CHECK(render_vms({}, kNow, {}) == "No VMs.\n");
}

TEST_CASE("tenants") {
  TenantView fine{"4f1a", "Acme", 1,  2,    "file", "/var/lib/kvmscope/tenants/4f1a.jsonl",
                  true,   false,  "", 1200, 10,     0,
                  0,      0,      0,  0,    0,      0,
                  0,      0};
  TenantView held{
      "lab", "", 2, 1, "otlp_grpc", "c.example:4317", false, true, "UNAUTHENTICATED: bad token", 0, 0, 4, 4,
      3,     2,  4, 0, 2,           2'097'152,        5};
  TenantView off{"quiet", "", 3, 0, "none", "", true, false, "", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  CHECK(render_tenants({off, held, fine}, {}) == golden("tenants"));
  CHECK(render_tenants({}, {}) == "No tenants.\n");
}

TEST_CASE("check") {
  const std::vector<CheckLine> lines = {
      {"btf", true, "/sys/kernel/btf/vmlinux", ""},
      {"tp_btf io_start", false, "kernel 6.1 has none", "identity by getrq"},
      {"lsm", false, "not in use", ""}};
  CHECK(render_check(lines, {}) == golden("check"));
  CHECK(render_check({{"lsm", false, "not in use", "x\x1b[2J"}}, {0, true}) ==
        "\x1b[33m--\x1b[0m  lsm  not in use\n         \x1b[33m-> x?[2J\x1b[0m\n");
}

TEST_CASE("Colours leave the columns where they are") {
  CHECK(render_table({{"A"}, {"B", true}}, {{{"x", Style::red}, {"1"}}}, {0, true}) ==
        "\x1b[1mA\x1b[0m  \x1b[1mB\x1b[0m\n\x1b[31mx\x1b[0m  1\n");
}

}  // namespace
}  // namespace kvmscope::hostd
