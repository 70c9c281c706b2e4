// SPDX-License-Identifier: Apache-2.0
#include <openssl/evp.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <string_view>

#include "tenancy/registry.h"

namespace kvmscope::tenancy {
namespace {

constexpr std::size_t kIdBytes = 16;

/// The length goes first, so that no two lists of fields look the same.
void append(std::string& out, std::string_view field) {
  out += std::to_string(field.size());
  out += ':';
  out += field;
}

std::string hex(const unsigned char* bytes, std::size_t size) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  for (std::size_t i = 0; i < size; ++i) {
    out += kDigits[bytes[i] >> 4];
    out += kDigits[bytes[i] & 0xF];
  }
  return out;
}

}  // namespace

core::EpochId epoch_id(const std::string& boot_id, const core::VmUuid& uuid, core::ProcessKey process,
                       const core::TenantId& tenant, std::uint32_t nth) {
  std::string fields;
  append(fields, "kvmscope epoch 1");
  append(fields, boot_id);
  append(fields, uuid.value);
  append(fields, std::to_string(process.tgid));
  append(fields, std::to_string(process.start_ticks));
  append(fields, tenant.value);
  append(fields, std::to_string(nth));

  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  // Without SHA-256 no two epochs could be told apart; libcrypto has no other reason to fail here.
  if (EVP_Digest(fields.data(), fields.size(), digest.data(), nullptr, EVP_sha256(), nullptr) != 1)
    std::abort();
  return {hex(digest.data(), kIdBytes)};
}

}  // namespace kvmscope::tenancy
