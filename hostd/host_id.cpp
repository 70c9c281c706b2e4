// SPDX-License-Identifier: Apache-2.0
#include "hostd/host_id.h"

#include <systemd/sd-id128.h>
#include <unistd.h>

#include <array>

namespace kvmscope::hostd {
namespace {

// Chosen at random, once: changing it renames every host.
constexpr sd_id128_t kApplication =
    SD_ID128_MAKE(6b, 76, 6d, 73, 63, 6f, 70, 65, 9d, 21, 4f, 3e, 8a, 5c, 17, f2);

}  // namespace

std::string default_host_id() {
  sd_id128_t id{};
  if (sd_id128_get_machine_app_specific(kApplication, &id) >= 0) {
    std::array<char, SD_ID128_STRING_MAX> text{};
    return sd_id128_to_string(id, text.data());
  }
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) == 0 && name[0] != '\0') return name.data();
  return "localhost";
}

}  // namespace kvmscope::hostd
