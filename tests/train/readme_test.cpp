// The README says what the program does: its table of configuration keys comes from the schema, row by row.
#include <algorithm>
#include <string>

#include "kernels/error.h"
#include "tests/catch.h"
#include "train/config.h"
#include "train/files.h"
#include "train/huggingface_config.h"

namespace outeffhop {
namespace {

std::string table_row(const Schema::Key& key) {
  std::string meaning = key.help;
  for (const std::string& alias : key.aliases) meaning += fmt::format("; also `{}`", alias);
  std::string standard = key.standard.dump();
  standard = standard == R"("")" ? "" : fmt::format("`{}`", standard);
  return fmt::format("| `{}` | {} | {} | {} |", key.path(), standard, key.expectation, meaning);
}

}  // namespace

TEST_CASE("the README's table has every key of the configuration, as it is") {
  Config config;
  config.model = default_model_config("bert");
  config.model.attn_softmax = "softmax1";
  config.model.vocab_size = config.model.pad_token_id = kAuto;
  const Schema schema = describe(config);
  const std::string readme = read_file(OUTEFFHOP_SOURCE_DIR "/README.md");
  std::size_t rows = 0;
  for (const Schema::Key& key : schema.keys()) {
    const std::string row = table_row(key);
    INFO("README.md lacks: " << row);
    CHECK(readme.find("\n" + row + "\n") != std::string::npos);
    ++rows;
  }
  // Rows of keys that are no more: every row of that table starts with a dotted key, or is the one of "output".
  std::size_t written = 0;
  for (std::size_t at = 0; (at = readme.find("\n| `", at)) != std::string::npos; ++at) {
    const std::string key = readme.substr(at + 4, readme.find('`', at + 4) - at - 4);
    written += key.find('.') != std::string::npos || key == "output";
  }
  CHECK(written == rows);
}

}  // namespace outeffhop
