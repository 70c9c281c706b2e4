// SPDX-License-Identifier: Apache-2.0
// All that a receiver can make the daemon parse: status details, messages, answers.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "exporters/response.h"
#include "exporters/utf8.h"

namespace {

using kvmscope::exporters::Attempt;
using kvmscope::exporters::Signal;

void require(bool condition) {
  if (!condition) std::abort();
}

void check_failure(int code, const std::string& text) {
  const Attempt attempt = kvmscope::exporters::judge_failure(code, text, text);
  require(attempt.verdict != Attempt::Verdict::ok);
  if (attempt.retry_after)
    require(attempt.retry_after->count() >= 0 && attempt.retry_after->count() < 86'401'000);
  if (code == 8) require((attempt.verdict == Attempt::Verdict::retry) == attempt.retry_after.has_value());
}

void check_line(const std::string& text) {
  const std::string secret = "secret";
  const std::string line = kvmscope::exporters::one_line(text, {&secret, 1});
  require(line.size() <= 300 && line.find(secret) == std::string::npos);
  std::string repaired = line;
  kvmscope::exporters::make_utf8(repaired);
  require(repaired == line);
  for (const char c : line) require(static_cast<unsigned char>(c) >= 0x20);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  check_failure(data[0] % 20 + 1, text);
  for (const Signal signal : {Signal::metrics, Signal::logs}) {
    require(kvmscope::exporters::judge_response(signal, text).verdict == Attempt::Verdict::ok);
  }
  check_line(text);
  return 0;
}
