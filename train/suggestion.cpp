#include "train/suggestion.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "train/schema.h"

namespace outeffhop {
namespace {

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;  // beyond that it is another word
  for (const std::string& candidate : known) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance >= best_distance) continue;
    best = candidate;
    best_distance = distance;
  }
  return best.empty() ? "" : fmt::format("; did you mean \"{}\"?", best);
}

}  // namespace

std::string unknown_word(const CLI::App& app, int argc, const char* const* argv) {
  const CLI::App* command = &app;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (command == &app && !word.starts_with("-")) {
      std::vector<std::string> names;
      for (const CLI::App* known : app.get_subcommands(nullptr)) {
        names.push_back(known->get_name());
        if (known->get_name() == word) command = known;
      }
      if (command != &app) continue;
      return fmt::format("there is no command \"{}\"{}", word, nearest(word, names));
    }
    const std::string name = word.substr(0, word.find('='));
    if (!name.starts_with("--") || name == "--" || command->get_option_no_throw(name)) continue;
    std::vector<std::string> names;
    for (const CLI::Option* known : command->get_options()) {
      for (const std::string& other : known->get_lnames()) names.push_back("--" + other);
    }
    return fmt::format("there is no option \"{}\"{}", name, nearest(name, names));
  }
  return "";
}

}  // namespace outeffhop
