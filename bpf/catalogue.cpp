// SPDX-License-Identifier: Apache-2.0
#include "bpf/catalogue.h"

#include <array>

#include "bpf/abi.h"

namespace kvmscope::bpf {
namespace {

using core::Instrument;
using core::InstrumentType;

constexpr Instrument kOperations{
    .name = "kvmscope.vm.disk.storage.operations",
    .unit = "{operation}",
    .description = "Block requests of the VM that the host's storage completed",
    .type = InstrumentType::counter,
};
constexpr Instrument kBytes{
    .name = "kvmscope.vm.disk.storage.io",
    .unit = "By",
    .description = "Bytes that the host's storage transferred for the VM",
    .type = InstrumentType::counter,
};
constexpr Instrument kErrors{
    .name = "kvmscope.vm.disk.storage.errors",
    .unit = "{error}",
    .description = "Block requests of the VM that failed in the host's storage",
    .type = InstrumentType::counter,
};
constexpr Instrument kDuration{
    .name = "kvmscope.vm.disk.storage.duration",
    .unit = "s",
    .description = "Time from a request's first issue to the host's storage until its completion",
    .type = InstrumentType::histogram,
};
constexpr Instrument kQueueDuration{
    .name = "kvmscope.vm.disk.storage.queue.duration",
    .unit = "s",
    .description = "Time from a request's start in the host's block layer until its first issue",
    .type = InstrumentType::histogram,
};

constexpr std::array<std::string_view, KV_OPS> kDirections{"read", "write", "flush", "discard"};
constexpr std::array<std::string_view, KV_ERRORS> kErrorTypes{"io",        "timeout", "nospc",   "medium",
                                                              "transport", "target",  "notsupp", "other"};

/// One label each, then two: what a series of these ops, or of these errors, carries.
constexpr auto kOpLabels = [] {
  std::array<std::array<SubLabel, 1>, KV_OPS> labels{};
  for (std::size_t op = 0; op < KV_OPS; ++op) labels[op][0] = {"disk.io.direction", kDirections[op]};
  return labels;
}();
constexpr auto kErrorLabels = [] {
  std::array<std::array<SubLabel, 2>, std::size_t{KV_OPS} * KV_ERRORS> labels{};
  for (std::size_t sub = 0; sub < labels.size(); ++sub) {
    labels[sub][0] = {"disk.io.direction", kDirections[sub / KV_ERRORS]};
    labels[sub][1] = {"error.type", kErrorTypes[sub % KV_ERRORS]};
  }
  return labels;
}();

constexpr auto kOps = [] {
  std::array<Sub, KV_OPS> subs{};
  for (std::size_t op = 0; op < KV_OPS; ++op) {
    subs[op] = {.labels = kOpLabels[op], .always = op == KV_READ || op == KV_WRITE};
  }
  return subs;
}();
constexpr auto kErrorSubs = [] {
  std::array<Sub, std::size_t{KV_OPS} * KV_ERRORS> subs{};
  for (std::size_t sub = 0; sub < subs.size(); ++sub) subs[sub] = {.labels = kErrorLabels[sub]};
  return subs;
}();

constexpr std::array<Kind, KV_KINDS> kKinds{{
    {.id = KV_DISK_STORAGE, .subs = kOps, .count = &kOperations, .sum = &kBytes},
    {.id = KV_DISK_ERRORS, .subs = kErrorSubs, .count = &kErrors},
    {.id = KV_DISK_STORAGE_DURATION, .histogram = true, .subs = kOps, .count = &kDuration},
    {.id = KV_DISK_QUEUE_DURATION, .histogram = true, .subs = kOps, .count = &kQueueDuration},
}};

}  // namespace

std::span<const Kind> catalogue() {
  return kKinds;
}

}  // namespace kvmscope::bpf
