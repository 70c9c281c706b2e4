// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "hostd/core/ids.h"

namespace kvmscope::hostd {

/// What a tenant's id is called in templates, and a VM's.
inline constexpr std::string_view kTenantVariable = "${tenant.id}";
inline constexpr std::string_view kVmVariable = "${vm.uuid}";
/// An id's word is never longer, in bytes.
inline constexpr std::size_t kMaxTenantWord = 128;

/// The id as one harmless word: letters, digits, '-' and '_' stand for themselves, every other byte is %XX;
/// what would become longer than 128 bytes is cut and ends in '~' and its SHA-256. Injective, never empty, no
/// '/', no '.', no control character: it cannot leave a directory, meet another tenant's rotated file, or end
/// a header.
std::string escape_tenant(const core::TenantId& tenant);

/// `text` with every `${tenant.id}` replaced by the escaped id.
std::string expand_tenant(std::string_view text, const core::TenantId& tenant);

/// `text` with every `${vm.uuid}` replaced. libvirt has checked that it is a UUID.
std::string expand_vm(std::string_view text, const core::VmUuid& uuid);

}  // namespace kvmscope::hostd
