// SPDX-License-Identifier: Apache-2.0
#include "hostd/table.h"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "hostd/human.h"

namespace kvmscope::hostd {
namespace {

constexpr std::size_t kGap = 2;

/// The columns that are shown, and how wide.
struct Layout {
  std::vector<std::size_t> shown;
  std::vector<std::size_t> width;  ///< of all columns

  std::size_t total() const {
    std::size_t sum = shown.empty() ? 0 : (shown.size() - 1) * kGap;
    for (const std::size_t column : shown) sum += width[column];
    return sum;
  }
};

/// Takes from the widest column that may shrink until the table fits; false if it cannot.
bool shrink(Layout& layout, const std::vector<Column>& columns, std::size_t room) {
  while (layout.total() > room) {
    std::size_t widest = columns.size();
    for (const std::size_t column : layout.shown) {
      if (columns[column].shrink_to == 0 || layout.width[column] <= columns[column].shrink_to) continue;
      if (widest == columns.size() || layout.width[column] > layout.width[widest]) widest = column;
    }
    if (widest == columns.size()) return false;
    --layout.width[widest];
  }
  return true;
}

Layout lay_out(const std::vector<Column>& columns, const std::vector<std::vector<Cell>>& rows,
               std::size_t room) {
  Layout full;
  full.shown.resize(columns.size());
  std::iota(full.shown.begin(), full.shown.end(), std::size_t{0});
  for (std::size_t column = 0; column < columns.size(); ++column) {
    std::size_t width = display_width(columns[column].title);
    for (const auto& row : rows) width = std::max(width, display_width(row[column].text));
    full.width.push_back(width);
  }
  while (true) {
    Layout layout = full;
    if (room == 0 || shrink(layout, columns, room)) return layout;
    const auto next =
        std::ranges::max_element(full.shown, {}, [&](std::size_t column) { return columns[column].drop; });
    if (next == full.shown.end() || columns[*next].drop == 0) return layout;
    full.shown.erase(next);
  }
}

void append_line(std::string& out, const Layout& layout, const std::vector<Column>& columns,
                 const std::vector<Cell>& cells, const Screen& screen) {
  for (std::size_t i = 0; i < layout.shown.size(); ++i) {
    const std::size_t column = layout.shown[i];
    const std::string text = fit(cells[column].text, layout.width[column]);
    const std::string padding(layout.width[column] - std::min(layout.width[column], display_width(text)),
                              ' ');
    const bool last = i + 1 == layout.shown.size();
    if (i > 0) out += std::string(kGap, ' ');
    if (columns[column].right) out += padding;
    out += styled(text, cells[column].style, screen);
    if (!columns[column].right && !last) out += padding;
  }
  if (!screen.colours) out.erase(out.find_last_not_of(' ') + 1);
  out += '\n';
}

}  // namespace

std::string styled(const std::string& text, Style style, const Screen& screen) {
  if (!screen.colours || style == Style::plain || text.empty()) return text;
  std::string_view code;
  switch (style) {
    case Style::plain:
      break;
    case Style::bold:
      code = "1";
      break;
    case Style::red:
      code = "31";
      break;
    case Style::yellow:
      code = "33";
      break;
    case Style::green:
      code = "32";
      break;
    case Style::dim:
      code = "2";
      break;
  }
  return "\x1b[" + std::string(code) + "m" + text + "\x1b[0m";
}

std::string render_table(std::vector<Column> columns, const std::vector<std::vector<Cell>>& rows,
                         const Screen& screen) {
  const Layout layout = lay_out(columns, rows, screen.columns);
  std::vector<Cell> titles;
  for (const Column& column : columns) titles.push_back({column.title, Style::bold});
  std::string out;
  append_line(out, layout, columns, titles, screen);
  for (const auto& row : rows) append_line(out, layout, columns, row, screen);
  return out;
}

}  // namespace kvmscope::hostd
