// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

// How QMP's JSON becomes plain values: never by conversion (nlohmann's get() makes 1.5 a 1, and -1 a large
// number), and unknown members are passed over. false: it is not of that type; `wrong` then names the
// innermost member that is not.
namespace kvmscope::virt {

/// Negative numbers are integers of one type for nlohmann, those the parser finds positive of another.
inline bool read_json(const nlohmann::json& from, std::uint64_t& to, std::string&) {
  if (!from.is_number_integer()) return false;
  to = from.get<std::uint64_t>();
  return from.is_number_unsigned() || from.get<std::int64_t>() >= 0;
}

inline bool read_json(const nlohmann::json& from, std::int64_t& to, std::string&) {
  if (!from.is_number_integer()) return false;
  to = from.get<std::int64_t>();
  return !from.is_number_unsigned() || to >= 0;
}

inline bool read_json(const nlohmann::json& from, std::uint32_t& to, std::string& wrong) {
  std::uint64_t value = 0;
  if (!read_json(from, value, wrong)) return false;
  to = static_cast<std::uint32_t>(value);
  return value == to;
}

inline bool read_json(const nlohmann::json& from, bool& to, std::string&) {
  if (!from.is_boolean()) return false;
  to = from.get<bool>();
  return true;
}

inline bool read_json(const nlohmann::json& from, std::string& to, std::string&) {
  if (!from.is_string()) return false;
  to = from.get_ref<const std::string&>();
  return true;
}

/// An object, in place.
inline bool read_json(const nlohmann::json& from, const nlohmann::json*& to, std::string&) {
  to = &from;
  return from.is_object();
}

/// Of lists: what takes a few bytes on the wire is a large thing here.
inline constexpr std::size_t kMostItems = 4'096;

template <typename T>
bool read_json(const nlohmann::json& from, std::vector<T>& to, std::string& wrong) {
  if (!from.is_array() || from.size() > kMostItems) return false;
  for (const nlohmann::json& item : from)
    if (!read_json(item, to.emplace_back(), wrong)) return false;
  return true;
}

/// A member that must be there.
template <typename T>
bool read_member(const nlohmann::json& from, const char* name, T& to, std::string& wrong) {
  const auto at = from.find(name);
  if (at != from.end() && read_json(*at, to, wrong)) return true;
  if (wrong.empty()) wrong = name;
  return false;
}

/// One that may be missing.
template <typename T>
bool read_member(const nlohmann::json& from, const char* name, std::optional<T>& to, std::string& wrong) {
  return !from.contains(name) || read_member(from, name, to.emplace(), wrong);
}

}  // namespace kvmscope::virt
