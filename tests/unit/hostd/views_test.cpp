// SPDX-License-Identifier: Apache-2.0
#include "hostd/views.h"

#include <nlohmann/json.hpp>

#include "tests/support/catch.h"

namespace kvmscope::hostd {
namespace {

using nlohmann::json;

template <typename T, typename From>
void round_trip(const T& views, From from) {
  const std::string line = to_line(to_json(views));
  CHECK(line.find('\n') == std::string::npos);
  const auto back = from(json::parse(line));
  REQUIRE(back);
  CHECK(*back == views);
}

TEST_CASE("VMs come back as they went") {
  VmView vm{"u-1",
            "web \"1\"\n",
            7,
            "acme",
            "Acme",
            "nova",
            "attributed",
            4711,
            3,
            12,
            1'700'000'000'000'000'001,
            "e-1",
            {},
            {},
            ""};
  vm.nics = {{"net0", "52:54:00:00:00:01", "vnet0", "0", ""}, {"net1", "", "", "", "no tap"}};
  vm.disks = {{"vda", "/img/a", "0", "file", ""}, {"vdb", "", "", "invisible", "network storage"}};
  VmView bare;
  round_trip(std::vector<VmView>{vm, bare}, vms_from_json);
  CHECK(to_json(std::vector<VmView>{bare})[0]["domain_id"].is_null());
  round_trip(std::vector<VmView>{}, vms_from_json);
}

TEST_CASE("Tenants come back as they went") {
  round_trip(std::vector<TenantView>{{"t",   "Tee",       1,
                                      2,     "otlp_grpc", "c.example:4317",
                                      false, true,        "UNAUTHENTICATED",
                                      3,     4,           5,
                                      6,     7,           8,
                                      9,     10,          11,
                                      12,    13}},
             tenants_from_json);
}

TEST_CASE("Readings and checks come back as they went") {
  round_trip(
      TopView{5,
              {{"vm", "u", "t", "T", "vda", "read", 1.5, 4096.25, 1, std::nullopt, 3, std::nullopt, 4, 10.0}},
              {{"vm", "u", "t", "T", "vcpu 0", 0.5, 0.25, 0.125, std::nullopt, 10.0}},
              {{"vm", "u", "t", "T", "net0", 0.5, 64, 0.25, 128, 1, 2, 3, 10.0}}},
      top_from_json);
  round_trip(TopView{}, top_from_json);
  round_trip(std::vector<CheckLine>{{"btf", true, "found", ""}, {"lsm", false, "none", "no events"}},
             check_from_json);
}

TEST_CASE("The names in the JSON are those that scripts know") {
  const json top = to_json(TopView{1, {TopRow{}}, {CpuRow{}}, {NicRow{}}});
  CHECK(
      top.dump() ==
      R"({"cpus":[{"cpu":0.0,"delay_p99_ns":null,"exits_per_s":null,"interval_s":0.0,"steal":0.0,"tenant":"",)"
      R"("tenant_name":"","thread":"","throttled":0.0,"uuid":"","vm":""}],)"
      R"("nics":[{"dropped":0,"interval_s":0.0,"nic":"","received_bytes_per_s":0.0,"received_per_s":0.0,)"
      R"("sent_bytes_per_s":0.0,"sent_per_s":0.0,"tenant":"","tenant_name":"","uuid":"","vm":"",)"
      R"("wait_p99_ns":null,"waiting":0}],)"
      R"("rows":[{"bytes_per_s":0.0,"direction":"","disk":"","errors":0,"interval_s":0.0,)"
      R"("operations_per_s":0.0,"p50_ns":null,"p95_ns":null,"p99_ns":null,"queue_p99_ns":null,)"
      R"("tenant":"","tenant_name":"","uuid":"","vm":""}],"time_unix_ns":1})");
}

TEST_CASE("What is not a view is an error, not an exception") {
  for (const char* text :
       {"null", "{}", "3", "[3]", "[{}]", R"([{"name":1,"ok":true,"detail":"","effect":""}])"}) {
    INFO(text);
    const auto views = check_from_json(json::parse(text));
    REQUIRE_FALSE(views);
    CHECK(views.error().code() == core::ErrorCode::corrupt);
  }
  CHECK(check_from_json(json::parse(R"([{"name":"a","ok":true,"detail":"","effect":"","new":1}])")));
}

TEST_CASE("A name that is not UTF-8 can still be told") {
  const std::string line = to_line(to_json(std::vector<CheckLine>{{"\xff\xfe", true, "", ""}}));
  CHECK(json::accept(line));
}

}  // namespace
}  // namespace kvmscope::hostd
