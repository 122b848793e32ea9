#include "train/config_command.h"

#include <fmt/format.h>

#include "train/huggingface_config.h"

namespace outeffhop {
namespace {

const char* resume_text(OnResume rule) {
  switch (rule) {
    case OnResume::fixed:
      return "fixed on resume";
    case OnResume::noted:
      return "may change on resume, with a note";
    case OnResume::free:
      return "may change on resume";
  }
  return "";
}

std::string comment(const Schema::Key& key, const nlohmann::ordered_json& value, const nlohmann::ordered_json& standard) {
  std::string text = fmt::format("{} [{}", key.help, key.expectation);
  for (const std::string& alias : key.aliases) text += fmt::format("; also spelt \"{}\"", alias);
  if (value != standard) text += fmt::format("; default {}", dump_text(standard));
  return fmt::format("// {}; {}]", text, resume_text(key.on_resume));
}

}  // namespace

std::string commented_config(const Config& config) {
  Config copy = config;
  Config standard = default_config(config.model.model_type);
  const Schema schema = describe(copy), standards = describe(standard);
  std::string text = "{\n", block;
  for (std::size_t i = 0; i < schema.keys().size(); ++i) {
    const Schema::Key& key = schema.keys()[i];
    const bool is_first = i == 0, opens = key.block != block, closes = opens && !block.empty();
    if (!is_first) text += closes ? "\n  },\n\n" : opens ? ",\n\n" : ",\n";
    block = key.block;
    if (opens && !block.empty()) text += fmt::format("  \"{}\": {{\n", block);
    const std::string indent(block.empty() ? 2 : 4, ' ');
    const nlohmann::ordered_json value = key.write();
    text += fmt::format("{}{}\n{}\"{}\": {}", indent, comment(key, value, standards.keys()[i].write()), indent, key.name,
                        value.dump());
  }
  return text + (block.empty() ? "\n}\n" : "\n  }\n}\n");
}

}  // namespace outeffhop
