// SPDX-License-Identifier: Apache-2.0
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>

#include "virt/qmp_replies.h"
#include "virt/qmp_wire.h"

namespace {

using namespace kvmscope;
using namespace kvmscope::virt;
using nlohmann::json;

// Small enough to be met.
constexpr QmpLimits kLimits{.line_bytes = 8'192, .depth = 32, .values = 300};

void expect(bool holds) {
  if (!holds) std::abort();
}

void expect_error(const core::Error& error) {
  const std::string& text = error.message();
  expect(error.code() == core::ErrorCode::corrupt && !text.empty() && text.size() <= 160);
  expect(std::ranges::all_of(text, [](char c) { return c >= ' ' && c <= '~'; }));
}

void expect_histogram(const BlockOperations& operations) {
  if (!operations.latency) return;
  const auto& [boundaries, bins] = *operations.latency;
  expect(bins.size() == boundaries.size() + 1);
  expect(boundaries.empty() || boundaries.front() > 0);
  for (std::size_t i = 1; i < boundaries.size(); ++i) expect(boundaries[i - 1] < boundaries[i]);
}

void expect_readings(const json& returned) {
  const auto devices = read_blockstats(returned);
  if (!devices) expect_error(devices.error());
  if (devices) expect(devices->size() == returned.size());
  for (const auto& device : devices.value_or(std::vector<BlockDeviceStats>()))
    for (const auto* kind : {&device.read, &device.write, &device.flush, &device.unmap})
      expect_histogram(*kind);
  const auto vcpus = read_cpus_fast(returned);
  if (!vcpus) expect_error(vcpus.error());
  for (const auto& thread : vcpus.value_or(std::vector<VcpuThread>()))
    expect(thread.thread_id > 0 && thread.thread_id <= 0x7fff'ffff);
  const auto iothreads = read_iothreads(returned);
  if (!iothreads) expect_error(iothreads.error());
  for (const auto& thread : iothreads.value_or(std::vector<IoThread>()))
    expect(thread.thread_id > 0 && thread.thread_id <= 0x7fff'ffff);
  if (const auto status = read_status(returned); !status) expect_error(status.error());
}

/// All that a message says, to be compared.
json contents(const QmpGreeting& greeting) {
  return {greeting.version, greeting.capabilities};
}
json contents(const QmpReply& reply) {
  json all = json::array({reply.id ? json(*reply.id) : json()});
  if (reply.result) {
    expect_readings(*reply.result);
    all.push_back(*reply.result);
  } else {
    all.push_back({reply.result.error().error_class, reply.result.error().description});
  }
  return all;
}
json contents(const QmpEvent& event) {
  expect(event.data.is_object());
  return {event.name, event.data, event.unix_ns ? json(*event.unix_ns) : json()};
}

/// Until none is whole; false at an error.
bool take(QmpDecoder& decoder, std::vector<json>& messages) {
  while (true) {
    const auto message = decoder.next();
    if (!message) {
      expect_error(message.error());
      expect(decoder.next().error().message() == message.error().message());
      messages.emplace_back(message.error().message());
      return false;
    }
    if (!*message) return true;
    messages.push_back(std::visit([](const auto& one) { return contents(one); }, **message));
  }
}

json value(FuzzedDataProvider& input) {
  switch (const int choice = input.ConsumeIntegralInRange(0, 31)) {
    case 0:
      return input.ConsumeIntegral<std::int64_t>();
    case 1:
      return input.ConsumeIntegral<std::uint64_t>();
    case 2:
      return 1.5;
    case 3:
      return "text";
    case 4:
      return json::array();
    default:
      return choice - 7;
  }
}

json values(FuzzedDataProvider& input) {
  json list = json::array();
  for (int left = input.ConsumeIntegralInRange(0, 4); left > 0; --left) list.push_back(value(input));
  return list;
}

/// All that the readings look for, of right and wrong types: text is hardly ever mutated into that.
void invent(FuzzedDataProvider& input) {
  json list = json::array();
  for (int left = input.ConsumeIntegralInRange(0, 3); left > 0; --left) {
    const json histogram{{"boundaries", values(input)}, {"bins", values(input)}};
    list.push_back({{"stats", {{"rd_bytes", value(input)}, {"wr_latency_histogram", histogram}}},
                    {"id", input.ConsumeBool() ? "io1" : value(input)},
                    {"cpu-index", value(input)},
                    {"thread-id", value(input)}});
    if (input.ConsumeBool())
      list.back().erase(std::next(list.back().begin(), input.ConsumeIntegralInRange(0, 3)));
  }
  QmpDecoder decoder;
  decoder.feed("{\"return\":" + list.dump() + "}\n");
  std::vector<json> messages;
  expect(take(decoder, messages) && messages == std::vector<json>{json::array({nullptr, list})});
}

void read_text(FuzzedDataProvider& input) {
  QmpDecoder in_pieces(kLimits);
  std::vector<json> messages;
  std::string all;
  for (bool good = true; input.remaining_bytes() > 0 && good;) {
    const auto cut = input.ConsumeIntegralInRange<std::size_t>(1, 256);
    const std::string piece = input.ConsumeBytesAsString(cut);
    all += piece;
    in_pieces.feed(piece);
    good = take(in_pieces, messages);
  }
  QmpDecoder at_once(kLimits);
  at_once.feed(all);
  std::vector<json> again;
  take(at_once, again);
  expect(messages == again);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // Numbers are taken from the back: a seed of text ends in a '~' for this choice, and one for each cut.
  FuzzedDataProvider input(data, size);
  input.ConsumeBool() ? invent(input) : read_text(input);
  return 0;
}
