// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

namespace kvmscope::core {

/// A number or a string with a meaning of its own: a SlotId is never passed where a Generation belongs.
template <typename Tag, typename T>
struct StrongId {
  T value{};
  auto operator<=>(const StrongId&) const = default;
};

/// Index into the kernel's outer arrays: one VM epoch in the hands of one owner. 0 is the host's own.
using SlotId = StrongId<struct SlotTag, std::uint32_t>;
inline constexpr SlotId kHostSlot{0};

/// Which tenancy of a slot a piece of work belongs to. Never reused within a daemon's life; 0 is never valid.
using Generation = StrongId<struct GenerationTag, std::uint32_t>;

/// One pair of inner maps (counters, histograms): values in it only grow. Never reused within a daemon's
/// life.
using Incarnation = StrongId<struct IncarnationTag, std::uint32_t>;

/// Who is billed: nova's project id, or what own metadata or a static rule says. Never empty in a valid id.
using TenantId = StrongId<struct TenantTag, std::string>;

/// libvirt's domain UUID, lower case with dashes.
using VmUuid = StrongId<struct UuidTag, std::string>;

/// Opaque, deterministic id of a VM epoch in one owner's hands: OTLP's service.instance.id.
using EpochId = StrongId<struct EpochTag, std::string>;

/// A process for good: process ids are reused, (tgid, start) is not.
struct ProcessKey {
  std::uint32_t tgid = 0;
  /// Start of the thread-group leader since boot, in clock ticks of 10 ms: field 22 of /proc/PID/stat, and
  /// the kernel's start_boottime / 10^7.
  std::uint64_t start_ticks = 0;
  auto operator<=>(const ProcessKey&) const = default;
};

struct SlotIdentity {
  SlotId slot;
  Generation generation;
  auto operator<=>(const SlotIdentity&) const = default;
};

}  // namespace kvmscope::core

template <typename Tag, typename T>
struct std::hash<kvmscope::core::StrongId<Tag, T>> {
  std::size_t operator()(const kvmscope::core::StrongId<Tag, T>& id) const {
    return std::hash<T>()(id.value);
  }
};

template <>
struct std::hash<kvmscope::core::ProcessKey> {
  std::size_t operator()(const kvmscope::core::ProcessKey& key) const {
    return std::hash<std::uint64_t>()(key.start_ticks * 0x9E3779B97F4A7C15ULL + key.tgid);
  }
};
