// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace kvmscope::hostd {

struct Column {
  std::string title;
  bool right = false;
  std::size_t shrink_to = 0;  ///< may be cut to this many columns where room is short; 0: never
  unsigned drop = 0;          ///< left out where room is shorter still, the highest first; 0: never
};

enum class Style : std::uint8_t { plain, bold, red, yellow, green, dim };

struct Cell {
  std::string text;  ///< safe_text()
  Style style = Style::plain;
};

/// How wide to print, and whether with colours.
struct Screen {
  std::size_t columns = 0;  ///< 0: as wide as it gets
  bool colours = false;
};

std::string styled(const std::string& text, Style style, const Screen& screen);

/// Aligned columns with two spaces between and a line of titles; no trailing spaces. Pure.
std::string render_table(std::vector<Column> columns, const std::vector<std::vector<Cell>>& rows,
                         const Screen& screen);

}  // namespace kvmscope::hostd
