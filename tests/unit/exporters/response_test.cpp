// SPDX-License-Identifier: Apache-2.0
#include "exporters/response.h"

#include <array>

#include "exporters/proto/rpc_status.pb.h"
#include "exporters/utf8.h"
#include "tests/support/catch.h"

namespace kvmscope::exporters {
namespace {

using std::chrono::milliseconds;

std::string details(std::int64_t seconds, int nanos,
                    const std::string& type = "type.googleapis.com/google.rpc.RetryInfo") {
  rpc::RetryInfo info;
  info.mutable_retry_delay()->set_seconds(seconds);
  info.mutable_retry_delay()->set_nanos(nanos);
  rpc::Status status;
  status.set_code(8);
  auto& other = *status.add_details();
  other.set_type_url("type.googleapis.com/google.rpc.DebugInfo");
  other.set_value("garbage \xFF");
  auto& detail = *status.add_details();
  detail.set_type_url(type);
  detail.set_value(info.SerializeAsString());
  return status.SerializeAsString();
}

TEST_CASE("the delay of a RetryInfo is read, whatever stands beside it") {
  REQUIRE(retry_delay(details(1, 500'000'000)) == milliseconds(1500));
  REQUIRE(retry_delay(details(0, 0)) == milliseconds(0));
  REQUIRE(retry_delay(details(-5, -1)) == milliseconds(0));
  REQUIRE(retry_delay(details(INT64_MAX, 2'000'000'000)) == milliseconds(86'400'999));
  REQUIRE_FALSE(retry_delay(details(1, 0, "type.googleapis.com/google.rpc.QuotaFailure")).has_value());
  REQUIRE_FALSE(retry_delay("").has_value());
  REQUIRE_FALSE(retry_delay("\xFF\xFF garbage").has_value());
}

TEST_CASE("a RetryInfo is read from the bytes the specification gives") {
  // Status{code=1: 8, details=3: Any{type_url=1, value=2: RetryInfo{retry_delay=1: Duration{seconds=1: 7}}}}
  const std::string url = "type.googleapis.com/google.rpc.RetryInfo";
  std::string any = "\x0A";
  any += static_cast<char>(url.size());
  any += url + std::string("\x12\x04\x0A\x02\x08\x07");
  std::string status("\x08\x08\x1A", 3);
  status += static_cast<char>(any.size());
  REQUIRE(retry_delay(status + any) == milliseconds(7000));
}

TEST_CASE("answers are read from the bytes the specification gives, garbage is still an acknowledgement") {
  // Response{partial_success=1: {rejected=1: 5, error_message=2: "no"}}
  const std::string response("\x0A\x06\x08\x05\x12\x02no", 8);
  for (const Signal signal : {Signal::metrics, Signal::logs}) {
    const Attempt partial = judge_response(signal, response);
    REQUIRE(partial.verdict == Attempt::Verdict::ok);
    REQUIRE(partial.rejected_items == 5);
    REQUIRE(partial.message.ends_with("no"));
    REQUIRE(judge_response(signal, "").message.empty());
    REQUIRE(judge_response(signal, "").rejected_items == 0);
    const Attempt garbage = judge_response(signal, "\xFF\xFF");
    REQUIRE(garbage.verdict == Attempt::Verdict::ok);
    REQUIRE_FALSE(garbage.message.empty());
  }
}

TEST_CASE("a stranger's text becomes one short line without secrets") {
  const std::vector<std::string> secrets = {"s3cret-token", "abc", "", "s3cret-token-longer"};
  REQUIRE(one_line("bad: s3cret-token, s3cret-token!", secrets) == "bad: ***, ***!");
  REQUIRE(one_line("abc stays: too short to tell", secrets) == "abc stays: too short to tell");
  REQUIRE(one_line("a\nb\x1B[31mc\x7F", {}) == "a b [31mc ");
  REQUIRE(one_line("\xFF", {}) == "?");
  const std::string at_the_cut = std::string(295, 'x') + "s3cret-token";
  REQUIRE(one_line(at_the_cut, secrets) == std::string(295, 'x') + "***");
  for (std::size_t pad = 290; pad < 301; ++pad) {
    const std::string cut =
        one_line(std::string(pad, 'x') + "\xE2\x82\xAC\xE2\x82\xAC\xE2\x82\xAC\xE2\x82\xAC", {});
    REQUIRE(cut.size() <= 300);
    std::string repaired = cut;
    make_utf8(repaired);
    REQUIRE(repaired == cut);
  }
}

TEST_CASE("a code that gRPC does not know is refused for good") {
  REQUIRE(judge_failure(99, "x", "").verdict == Attempt::Verdict::refused);
  REQUIRE(judge_failure(99, "x", "").message == "status 99: x");
}

}  // namespace
}  // namespace kvmscope::exporters
