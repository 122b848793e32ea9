// JSON from outside the program, parsed within limits that keep every later step (copies, messages) safe.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "kernels/error.h"

namespace outeffhop {

/// Objects and lists inside one another; none of our files needs more than four. The JSON library copies and prints values
/// by recursion, so that a text of nothing but brackets could exhaust the stack.
constexpr int kDeepestJson = 64;

struct JsonRules {
  ErrorKind kind;            ///< of the errors
  bool comments = false;     ///< // and /* */ are passed over
  const char* way_out = "";  ///< ends the message about a text that is no JSON
};

/// Parses a whole text. Throws Error(rules.kind), beginning with `origin` (a file name), for what is not JSON (with line and
/// column), for a key that stands twice in one object (the last would win in silence), for a number beyond a double, and for
/// values nested deeper than kDeepestJson.
nlohmann::json parse_json(std::string_view text, const std::string& origin, const JsonRules& rules);

/// JSON as text for a message: what is not UTF-8 in it is replaced, where dump() would throw.
template <class Json>
std::string dump_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace outeffhop
