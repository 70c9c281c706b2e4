// SPDX-License-Identifier: Apache-2.0
#include "virt/qmp_replies.h"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "tests/support/catch.h"

namespace kvmscope::virt {
namespace {

using nlohmann::json;

/// What the first reply in a seed of the fuzzer returns.
json sample(const std::string& name) {
  std::ifstream file(KVMSCOPE_SOURCE_DIR "/tests/fuzz/virt/corpus/" + name);
  for (std::string line; std::getline(file, line);)
    if (const json message = json::parse(line); message.contains("return")) return message["return"];
  FAIL("no reply in " << name);
  return {};
}

template <typename T>
T value_of(core::Result<T> read) {
  if (!read) FAIL(read.error().message());
  return std::move(*read);
}

template <typename T>
std::string error_of(const core::Result<T>& read) {
  REQUIRE_FALSE(read);
  CHECK(read.error().code() == core::ErrorCode::corrupt);
  return read.error().message();
}

BlockDeviceStats one_device(const json& stats) {
  const auto devices = value_of(read_blockstats(json::array({{{"stats", stats}}})));
  REQUIRE(devices.size() == 1);
  return devices[0];
}

TEST_CASE("block statistics as QEMU 7.2 returns them") {
  const auto devices = value_of(read_blockstats(sample("blockstats.qmp")));
  REQUIRE(devices.size() == 3);
  CHECK(devices[0].qdev == "/machine/peripheral/disk0/virtio-backend");
  CHECK(devices[0].node_name == "n0");
  CHECK(devices[0].device.empty());
  const LatencyHistogram none{{1'000, 10'000}, {0, 0, 0}};
  CHECK(devices[0].read ==
        BlockOperations{11, 45'056, 1'234, 1, 2, LatencyHistogram{{1'000, 10'000}, {5, 6, 1}}});
  CHECK(devices[0].write == BlockOperations{3, 12'288, 999, 0, 0, none});
  CHECK(devices[0].flush == BlockOperations{4, std::nullopt, 77, 0, std::nullopt, none});
  CHECK(devices[0].unmap == BlockOperations{5, 20'480, 88, 6, 7, std::nullopt});
  // With -drive, and an image below it whose figures are not this device's.
  CHECK(devices[1].device == "virtio0");
  CHECK(devices[1].read.operations == 21);
  CHECK_FALSE(devices[1].read.latency);
  // A drive without a medium.
  CHECK(devices[2].node_name.empty());
  CHECK(devices[2].qdev == "cd0");
}

TEST_CASE("a figure that is missing is none, and one of another type an error") {
  CHECK(one_device(json::object()) == BlockDeviceStats());
  CHECK(one_device({{"rd_bytes", 0}}).read == BlockOperations{.bytes = 0});
  CHECK(one_device({{"rd_bytes", 18446744073709551615U}}).read.bytes == 18446744073709551615U);
  for (const json& wrong : {json(-1), json(1.0), json("1"), json(nullptr), json::array(), json(true)}) {
    CAPTURE(wrong);
    for (const char* name : {"rd_operations", "wr_bytes", "flush_total_time_ns", "failed_unmap_operations",
                             "wr_merged", "rd_latency_histogram"}) {
      const auto read = read_blockstats(json::array({{{"stats", {{name, wrong}}}}}));
      CHECK(error_of(read) == std::string("query-blockstats returned no or a wrong '") +
                                  (std::string(name).ends_with("gram") ? "boundaries" : name) + "'");
    }
  }
  for (const char* text : {"null", "{}", "1", "[1]", "[{}]", "[[]]", R"([{"stats": {}}, {}])",
                           R"([{"stats": 1}])", R"([{"stats": null}])", R"([{"stats": []}])",
                           R"([{"stats": {}, "qdev": 1}])", R"([{"stats": {}, "node-name": null}])"})
    CHECK_FALSE(error_of(read_blockstats(json::parse(text))).empty());
  CHECK(value_of(read_blockstats(json::array())).empty());
}

TEST_CASE("a list that is short on the wire and large as what it means is refused") {
  json devices = json::array();
  for (std::size_t i = 0; i < 4'096; ++i) devices.push_back({{"stats", json::object()}});
  CHECK(value_of(read_blockstats(devices)).size() == 4'096);
  devices.push_back({{"stats", json::object()}});
  CHECK_FALSE(error_of(read_blockstats(devices)).empty());
}

TEST_CASE("a histogram has one bin more than boundaries, which ascend") {
  const auto read = [](const char* boundaries, const char* bins) {
    const json histogram{{"boundaries", json::parse(boundaries)}, {"bins", json::parse(bins)}};
    return read_blockstats(json::array({{{"stats", {{"wr_latency_histogram", histogram}}}}}));
  };
  CHECK(value_of(read("[5, 6]", "[1, 2, 3]"))[0].write.latency == LatencyHistogram{{5, 6}, {1, 2, 3}});
  CHECK(value_of(read("[]", "[1]"))[0].write.latency == LatencyHistogram{{}, {1}});
  CHECK(error_of(read("[5, 6]", "[1, 2]")).ends_with("'wr_latency_histogram'"));
  CHECK(error_of(read("[5, 6]", "[1, 2, 3, 4]")).ends_with("'wr_latency_histogram'"));
  CHECK(error_of(read("[5, 5]", "[1, 2, 3]")).ends_with("'wr_latency_histogram'"));
  CHECK(error_of(read("[6, 5]", "[1, 2, 3]")).ends_with("'wr_latency_histogram'"));
  CHECK(error_of(read("[0]", "[1, 2]")).ends_with("'wr_latency_histogram'"));
  CHECK(error_of(read("[5.5]", "[1, 2]")).ends_with("'boundaries'"));
  CHECK(error_of(read("[5]", "[1, -2]")).ends_with("'bins'"));
}

TEST_CASE("threads") {
  CHECK(value_of(read_cpus_fast(sample("threads.qmp"))) == std::vector<VcpuThread>{{0, 4128}, {1, 4129}});
  CHECK(value_of(read_cpus_fast(json::array())).empty());
  CHECK(value_of(read_iothreads(json::parse(R"([{"id": "io1", "thread-id": 4124, "poll-grow": 0}])"))) ==
        std::vector<IoThread>{{"io1", 4124}});
  for (const char* id : {"0", "-1", "2147483648", "4294967297", "1.0", "\"1\"", "null"}) {
    const std::string thread = std::string("\"thread-id\": ") + id + "}]";
    CHECK(error_of(read_cpus_fast(json::parse("[{\"cpu-index\": 0, " + thread))).ends_with("'thread-id'"));
    CHECK(error_of(read_iothreads(json::parse("[{\"id\": \"io1\", " + thread))).ends_with("'thread-id'"));
  }
  CHECK(error_of(read_cpus_fast(json::parse(R"([{"thread-id": 1}])"))).ends_with("'cpu-index'"));
  CHECK(error_of(read_cpus_fast(json::object())) == "query-cpus-fast returned no such thing");
  CHECK(error_of(read_iothreads(json::parse(R"([{"thread-id": 1}])"))).ends_with("'id'"));
  CHECK(error_of(read_iothreads(json())) == "query-iothreads returned no such thing");
}

TEST_CASE("whether the vCPUs run") {
  CHECK(value_of(read_status({{"status", "prelaunch"}, {"singlestep", false}, {"running", false}})) ==
        RunStatus{false, "prelaunch"});
  CHECK(value_of(read_status({{"status", "running"}, {"running", true}})) == RunStatus{true, "running"});
  CHECK(error_of(read_status({{"status", "running"}})).ends_with("'running'"));
  CHECK(error_of(read_status({{"status", 1}, {"running", true}})).ends_with("'status'"));
  CHECK(error_of(read_status(json::array())).ends_with("'running'"));
}

}  // namespace
}  // namespace kvmscope::virt
