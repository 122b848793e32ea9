#include "data/json.h"

#include <set>
#include <vector>

namespace outeffhop {

nlohmann::json parse_json(std::string_view text, const std::string& origin, const JsonRules& rules) {
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string>> seen;  // the keys so far, an entry for each object that is still open
  const auto watch = [&](int depth, Event event, nlohmann::json& parsed) {
    if ((event == Event::object_start || event == Event::array_start) && depth >= kDeepestJson) {
      fail(rules.kind, "{}: not valid JSON for this program: more than {} objects or lists inside one another{}", origin,
           kDeepestJson, rules.way_out);
    }
    if (event == Event::object_start) seen.emplace_back();
    if (event == Event::object_end) seen.pop_back();
    if (event == Event::key && !seen.back().insert(parsed.get<std::string>()).second) {
      fail(rules.kind, "{}: the key {} stands twice in one object{}", origin, dump_text(parsed), rules.way_out);
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), watch, true, rules.comments);
  } catch (const nlohmann::json::exception& e) {
    const std::string what = e.what();
    const std::size_t tag = what.find("] ");  // the library begins with its own error number in brackets
    fail(rules.kind, "{}: not valid JSON: {}{}", origin, tag == std::string::npos ? what : what.substr(tag + 2),
         rules.way_out);
  }
}

}  // namespace outeffhop
