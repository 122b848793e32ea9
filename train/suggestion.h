// What a mistyped command or option was probably meant to be.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace outeffhop {

/// One sentence about the first word of a command line that `app` does not know, with the nearest command or option there
/// is. Empty when every word is known.
std::string unknown_word(const CLI::App& app, int argc, const char* const* argv);

}  // namespace outeffhop
