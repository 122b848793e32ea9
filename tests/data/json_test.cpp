#include "data/json.h"

#include "tests/data/data_support.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;
using test::caught_error;

std::string refusal(const std::string& text, bool comments = false) {
  const Error e = caught_error([&] {
    parse_json(text, "some.json", {.kind = ErrorKind::checkpoint, .comments = comments, .way_out = ": write it again"});
  });
  CHECK(e.kind() == ErrorKind::checkpoint);
  CHECK_THAT(e.what(), Contains("some.json: ") && Contains(": write it again"));
  return e.what();
}

std::string nested(int depth) {
  const auto count = static_cast<std::size_t>(depth);
  return std::string(count, '[') + std::string(count, ']');
}

TEST_CASE("What is no JSON is refused with line and column") {
  CHECK_THAT(refusal("{\"a\":\n 1,}"), Contains("not valid JSON") && Contains("line 2, column 4"));
  CHECK_THAT(refusal(""), Contains("not valid JSON"));
  CHECK_THAT(refusal("{} {}"), Contains("not valid JSON"));
  CHECK_THAT(refusal("{\"a\": \"\xff\"}"), Contains("not valid JSON"));
  CHECK_THAT(refusal("[1e999]"), Contains("1e999"));
  CHECK_THAT(refusal("[1] // one"), Contains("not valid JSON"));
  CHECK(parse_json("[1] // one", "", {.kind = ErrorKind::usage, .comments = true}) == nlohmann::json{1});
}

TEST_CASE("A key that stands twice in one object is refused, in two objects it is not") {
  CHECK_THAT(refusal(R"([{"a": 1, "b": {"a": 2, "c": [], "a": 3}}])"), Contains("\"a\" stands twice"));
  CHECK_THAT(refusal(R"({"a": {"b": 1}, "a": 3})"), Contains("\"a\" stands twice"));
  CHECK(parse_json(R"({"a": {"a": 1}, "b": {"a": 2}})", "", {.kind = ErrorKind::usage})["b"]["a"] == 2);
}

TEST_CASE("Nesting that could exhaust the stack is refused") {
  CHECK(parse_json(nested(kDeepestJson), "", {.kind = ErrorKind::usage}).is_array());
  CHECK_THAT(refusal(nested(kDeepestJson + 1)), Contains("more than 64"));
  CHECK_THAT(refusal(std::string(5'000'000, '[')), Contains("more than 64"));
  std::string objects;
  for (int i = 0; i < 1'000'000; ++i) objects += "{\"a\":";
  CHECK_THAT(refusal(objects), Contains("more than 64"));
}

}  // namespace
}  // namespace outeffhop
