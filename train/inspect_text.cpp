// Facts as text: one renderer for every kind, so that what --json says and what a person reads cannot differ.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "train/inspect.h"
#include "train/schema.h"

namespace outeffhop {
namespace {

using Json = nlohmann::ordered_json;

bool is_table(const Json& value) {
  return value.is_array() && !value.empty() &&
         std::all_of(value.begin(), value.end(), [](const Json& row) { return row.is_object(); });
}

bool is_paragraphs(const std::string& key, const Json& value) { return key == "problems" && value.is_array(); }

/// Keys of a configuration stay as they are spelt there.
std::string label(std::string key) {
  if (key.find('.') != std::string::npos) return key;
  std::replace(key.begin(), key.end(), '_', ' ');
  return key;
}

std::string cell(const Json& value) {
  if (value.is_null()) return "-";
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) return fmt::format("{:.6g}", value.get<double>());
  if (!value.is_array()) return dump_text(value);
  std::vector<std::string> items;
  for (const Json& item : value) items.push_back(cell(item));
  return items.empty() ? "none" : fmt::format("{}", fmt::join(items, " "));
}

/// Columns are the keys of all rows in the order they first appear; numbers to the right.
std::string table(const Json& rows, const std::string& indent) {
  std::vector<std::string> columns;
  for (const Json& row : rows) {
    for (const auto& [key, value] : row.items()) {
      if (std::find(columns.begin(), columns.end(), key) == columns.end()) columns.push_back(key);
    }
  }
  std::vector<std::vector<std::string>> lines(rows.size() + 1);
  for (const std::string& column : columns) {
    std::size_t width = label(column).size();
    bool right = false;
    for (const Json& row : rows) {
      if (!row.contains(column)) continue;
      width = std::max(width, cell(row[column]).size());
      right = right || row[column].is_number();
    }
    const auto aligned = [&](const std::string& text) {
      return right ? fmt::format("{:>{}}", text, width) : fmt::format("{:<{}}", text, width);
    };
    lines[0].push_back(aligned(label(column)));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      lines[i + 1].push_back(aligned(rows[i].contains(column) ? cell(rows[i][column]) : ""));
    }
  }
  std::string text;
  for (const auto& line : lines) {
    std::string joined = fmt::format("{}{}", indent, fmt::join(line, "  "));
    joined.erase(joined.find_last_not_of(' ') + 1);
    text += joined + '\n';
  }
  return text;
}

std::string render(const Json& facts, const std::string& indent) {
  const auto is_block = [](const std::string& key, const Json& value) {
    return value.is_object() || is_table(value) || is_paragraphs(key, value);
  };
  std::size_t width = 0;
  for (const auto& [key, value] : facts.items()) {
    if (!is_block(key, value)) width = std::max(width, key.size());
  }
  std::string text;
  for (const auto& [key, value] : facts.items()) {
    if (!is_block(key, value)) {
      text += fmt::format("{}{:<{}}  {}\n", indent, label(key), width, cell(value));
      continue;
    }
    text += fmt::format("\n{}{}\n", indent, label(key));
    if (is_paragraphs(key, value)) {
      for (const Json& sentence : value) text += fmt::format("{}  {}\n", indent, cell(sentence));
    } else {
      text += is_table(value) ? table(value, indent + "  ") : render(value, indent + "  ");
    }
  }
  return text;
}

}  // namespace

std::string facts_text(const Json& facts) { return render(facts, ""); }

}  // namespace outeffhop
