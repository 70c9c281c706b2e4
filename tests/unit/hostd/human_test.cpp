// SPDX-License-Identifier: Apache-2.0
#include "hostd/human.h"

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

TEST_CASE("Rates for people") {
  CHECK(human_rate(0) == "-");
  CHECK(human_rate(0.4) == "0.4");
  CHECK(human_rate(9.96) == "10");
  CHECK(human_rate(12.3) == "12");
  CHECK(human_rate(999) == "999");
  CHECK(human_rate(999.5) == "1.0k");
  CHECK(human_rate(1'234) == "1.2k");
  CHECK(human_rate(123'456) == "123.5k");
  CHECK(human_rate(3'400'000) == "3.4M");
  CHECK(human_byte_rate(0) == "-");
  CHECK(human_byte_rate(512) == "512 B/s");
  CHECK(human_byte_rate(4.0 * 1024 * 1024) == "4.0 MiB/s");
  CHECK(human_bytes(1023.7) == "1.0 KiB");
  CHECK(human_bytes(65536) == "64.0 KiB");
}

TEST_CASE("Durations for people") {
  CHECK(human_duration(std::nullopt) == "-");
  CHECK(human_duration(0) == "0ns");
  CHECK(human_duration(954) == "954ns");
  CHECK(human_duration(1'000) == "1.0us");
  CHECK(human_duration(850'000) == "850us");
  CHECK(human_duration(999'700) == "1.0ms");
  CHECK(human_duration(20'500'000) == "20.5ms");
  CHECK(human_duration(1'200'000'000) == "1.2s");
  CHECK(human_duration(119'000'000'000) == "119s");
  CHECK(human_duration(180'000'000'000) == "3m");
  CHECK(human_duration(5ULL * 3600 * 1'000'000'000) == "5h");
  CHECK(human_duration(50ULL * 3600 * 1'000'000'000) == "2d");
  CHECK(human_duration(UINT64_MAX) == "213504d");
}

TEST_CASE("A name cannot speak to the terminal") {
  CHECK(safe_text("web-1") == "web-1");
  CHECK(safe_text("a\x1b[2Jb\n\tc\x7f") == "a?[2Jb??c?");
  CHECK(safe_text("\xc2\x9b"
                  "31m") == "?31m");  // a control character of one byte less
  CHECK(safe_text("a\xe2\x80\xae"
                  "b") == "a?b");  // right-to-left override
  CHECK(safe_text("\xff\xc3") == "??");
  CHECK(safe_text("\xc0\xaf\xed\xa0\x80") == "?????");  // overlong, surrogate
  CHECK(safe_text("caf\xc3\xa9 \xe4\xb8\xad") == "caf\xc3\xa9 \xe4\xb8\xad");
}

TEST_CASE("Widths are those of the terminal") {
  CHECK(display_width("abc") == 3);
  CHECK(display_width("caf\xc3\xa9") == 4);
  CHECK(display_width("cafe\xcc\x81") == 4);
  CHECK(display_width("\xe4\xb8\xad\xe6\x96\x87") == 4);
  CHECK(fit("abcdef", 6) == "abcdef");
  CHECK(fit("abcdef", 5) == "abcd…");
  CHECK(fit("\xe4\xb8\xad\xe6\x96\x87\xe5\xad\x97", 4) == "\xe4\xb8\xad…");
  CHECK(fit("abc", 1) == "…");
  CHECK(fit("abc", 0).empty());
}

}  // namespace
}  // namespace kvmscope::hostd
