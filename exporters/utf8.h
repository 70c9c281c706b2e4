// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace kvmscope::exporters {

/// Length of the valid UTF-8 character at the front of `text`, 0 if there is none (overlong forms, surrogates
/// and cut characters are none).
std::size_t utf8_character(std::string_view text);

/// Replaces each byte that is no part of valid UTF-8 by '?'. A receiver refuses a whole request for one such
/// byte, and paths and device names of a host are bytes, not text.
void make_utf8(std::string& text);

}  // namespace kvmscope::exporters
