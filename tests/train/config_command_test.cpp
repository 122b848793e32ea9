// `outeffhop config`: a commented configuration that is a configuration.
#include "train/config_command.h"

#include <algorithm>
#include <sstream>

#include "tests/catch.h"
#include "tests/data/data_support.h"

namespace outeffhop {
namespace {

using Catch::Matchers::Contains;

Config configuration(const nlohmann::json& values) { return read_config(values, "test"); }

/// Reads the text as `train --config` would.
Config read_back(const std::string& text) {
  const test::TemporaryDirectory directory;
  test::write_bytes(directory.path() / "config.json", text);
  return load_config(directory.path() / "config.json", {});
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

}  // namespace

TEST_CASE("A commented configuration reads back as the same configuration") {
  const nlohmann::json examples[] = {
      nlohmann::json::object(),
      {{"model", {{"model_type", "opt"}}}},
      // Every kind of value, one that looks like a comment, and "none".
      {{"model", {{"pad_token_id", "none"}, {"initializer_range", 1.0 / 3.0}, {"vocab_size", 30522}}},
       {"data", {{"train", "corpora//a \"quoted\" /*name*/*.bin"}, {"special_token_ids", {0, 101, 102}}}},
       {"optimizer", {{"wd_LN_gamma", true}, {"epsilon", 1e-300}}},
       {"output", "r\\un\u00e9"}}};
  for (const nlohmann::json& values : examples) {
    const Config config = configuration(values);
    CHECK(write_config(read_back(commented_config(config))) == write_config(config));
  }
}

TEST_CASE("Every key has its own comment line, from the description that checks it") {
  Config config = configuration(nlohmann::json::object());
  const std::vector<std::string> lines = lines_of(commented_config(config));
  const Schema schema = describe(config);
  for (const Schema::Key& key : schema.keys()) {
    INFO(key.path());
    const std::string help = "// " + key.help + " [" + key.expectation;
    const auto comment = std::find_if(lines.begin(), lines.end(), [&](const std::string& line) {
      return line.find(help) != std::string::npos && (&line)[1].find('"' + key.name + "\": ") != std::string::npos;
    });
    REQUIRE(comment + 1 < lines.end());
    CHECK_THAT(*comment, Contains(" on resume"));
    for (const std::string& alias : key.aliases) CHECK_THAT(*comment, Contains(alias));
    // At its default, nothing says what the default would be.
    CHECK_THAT(*comment, !Contains("; default "));
  }
}

TEST_CASE("Defaults follow the model type, and what differs from them is said") {
  const std::string opt = commented_config(configuration({{"model", {{"model_type", "opt"}}}}));
  CHECK_THAT(opt, Contains("\"hidden_act\": \"relu\"") && Contains("\"max_position_embeddings\": 2048"));
  CHECK_THAT(opt, !Contains("; default \"gelu\""));
  const std::string changed = commented_config(configuration({{"training", {{"steps", 7}}}}));
  CHECK_THAT(changed, Contains("; default 1000; may change on resume]\n    \"steps\": 7"));
  CHECK_THAT(commented_config(configuration(nlohmann::json::object())),
             Contains("// storage of weights and activations [one of \"fp32\", \"bf16\"; "
                      "fixed on resume]\n    \"dtype\": \"fp32\""));
}

}  // namespace outeffhop
