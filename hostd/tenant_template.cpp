// SPDX-License-Identifier: Apache-2.0
#include "hostd/tenant_template.h"

#include <openssl/sha.h>

#include <array>

namespace kvmscope::hostd {
namespace {

constexpr std::size_t kKept = kMaxTenantWord - 1 - std::size_t{2} * SHA256_DIGEST_LENGTH;

void append_hex(std::string& out, unsigned char byte, std::string_view digits) {
  out += digits[byte >> 4];
  out += digits[byte & 15];
}

bool stands_for_itself(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

std::string sha256_hex(std::string_view bytes) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  // char and unsigned char may alias.
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest.data());
  std::string hex;
  for (const unsigned char byte : digest) append_hex(hex, byte, "0123456789abcdef");
  return hex;
}

std::string expand(std::string_view text, std::string_view variable, std::string_view word) {
  std::string out;
  while (true) {
    const std::size_t at = text.find(variable);
    out += text.substr(0, at);
    if (at == std::string_view::npos) return out;
    out += word;
    text.remove_prefix(at + variable.size());
  }
}

}  // namespace

std::string escape_tenant(const core::TenantId& tenant) {
  std::string word;
  for (const char c : tenant.value) {
    if (stands_for_itself(c)) {
      word += c;
    } else {
      word += '%';
      append_hex(word, static_cast<unsigned char>(c), "0123456789ABCDEF");
    }
  }
  if (!word.empty() && word.size() <= kMaxTenantWord) return word;
  return word.substr(0, kKept) + "~" + sha256_hex(tenant.value);
}

std::string expand_tenant(std::string_view text, const core::TenantId& tenant) {
  return expand(text, kTenantVariable, escape_tenant(tenant));
}

std::string expand_vm(std::string_view text, const core::VmUuid& uuid) {
  return expand(text, kVmVariable, uuid.value);
}

}  // namespace kvmscope::hostd
