// SPDX-License-Identifier: Apache-2.0
#include "hostd/config_values.h"

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

using namespace std::chrono_literals;

TEST_CASE("Durations") {
  CHECK(parse_duration("500ms") == 500ms);
  CHECK(parse_duration("10s") == 10s);
  CHECK(parse_duration("5m") == 5min);
  CHECK(parse_duration("24h") == 24h);
  for (const char* bad : {"", "10", "s", "-1s", "1.5s", "10 s", "10S", "1h30m", "18446744073709551615s",
                          "9223372036854775807h"}) {
    INFO(bad);
    CHECK_FALSE(parse_duration(bad));
  }
  CHECK(duration_text(0ms) == "0s");
  CHECK(duration_text(1500ms) == "1500ms");
  CHECK(duration_text(90s) == "90s");
  CHECK(duration_text(2h) == "2h");
}

TEST_CASE("Sizes") {
  CHECK(parse_size("4096") == 4096);
  CHECK(parse_size("64KiB") == 65536);
  CHECK(parse_size("16MiB") == 16U << 20);
  CHECK(parse_size("2GiB") == std::uint64_t{2} << 30);
  for (const char* bad : {"", "64KB", "64K", "-1", "1.5MiB", "64 KiB", "18446744073709551615GiB"}) {
    INFO(bad);
    CHECK_FALSE(parse_size(bad));
  }
  CHECK(size_text(4096) == "4KiB");
  CHECK(size_text(5000) == "5000");
}

TEST_CASE("Endpoints") {
  for (const char* good :
       {"collector.example:4317", "10.0.0.1:1", "[::1]:65535", "[fe80::1]:4317", "a_b-c:80"}) {
    INFO(good);
    CHECK_FALSE(check_endpoint(good));
  }
  for (const char* bad : {"",
                          ":4317",
                          "x",
                          "x:",
                          "x:0",
                          "x:65536",
                          "x:4317x",
                          "::1:4317",
                          "[]:4317",
                          "[g::]:1",
                          "[1:2:3:4:5:6:7:8:9:a]:1",
                          "[fe80::1",
                          "127.0.0.999:1",
                          "1.2.3:1",
                          "me:pw@host:1",
                          "a b:1",
                          "-a:1",
                          "user@host:1",
                          "host/path:1",
                          "x:-1",
                          "x:+1"}) {
    INFO(bad);
    CHECK(check_endpoint(bad));
  }
}

TEST_CASE("Names of QEMU binaries are as long as the programs compare") {
  const std::string longest(31, 'q');
  CHECK_FALSE(check_qemu_name(longest));
  CHECK_FALSE(check_qemu_name(longest + "*"));
  CHECK(check_qemu_name(longest + "q"));
  CHECK(check_qemu_name(longest + "q*"));
  // What is proposed can be printed, whatever was written.
  CHECK(check_qemu_name("\x1b[2J" + longest)->remedy.find('\x1b') == std::string::npos);
}

TEST_CASE("Only what cannot leave the host is loopback") {
  for (const char* loopback : {"localhost:1", "127.0.0.1:4317", "127.1.2.3:1", "[::1]:4317"}) {
    INFO(loopback);
    CHECK(is_loopback(loopback));
  }
  for (const char* other : {"127.0.0.1.evil.example:1", "127.evil:1", "localhost.example:1", "[::2]:1",
                            "0.0.0.0:1", "10.0.0.1:1", "127.1:x", "127.0.0.999:1", "127.1:1"}) {
    INFO(other);
    CHECK_FALSE(is_loopback(other));
  }
}

TEST_CASE("Shell patterns") {
  for (const char* good : {"*", "web-*", "a[0-9]b", "a[]]b", "a[!]x]", "\\[x", "[^a]"}) {
    INFO(good);
    CHECK_FALSE(check_pattern(good));
  }
  for (const char* bad : {"", "[", "a[", "a[]", "a[!]", "x[abc"}) {
    INFO(bad);
    CHECK(check_pattern(bad));
  }
}

TEST_CASE("What was meant") {
  const std::string_view known[] = {"interval", "level", "format", "spare_slots"};
  CHECK(nearest("intervall", known) == "interval");
  CHECK(nearest("lvel", known) == "level");
  CHECK(nearest("spare", known) == "spare_slots");
  CHECK(nearest("colour", known).empty());
  CHECK(nearest("", known).empty());
  CHECK(nearest(std::string(5'000, 'x'), known).empty());
}

TEST_CASE("Values are quoted so that they stay values") {
  CHECK(quoted("a\"b\\\n\x1b\xff") == "\"a\\\"b\\\\\\x0a\\x1b\\xff\"");
  CHECK(quoted(std::string(100, 'a')) == "\"" + std::string(64, 'a') + "...\"");
}

}  // namespace
}  // namespace kvmscope::hostd
