// The program's command line.
#pragma once

namespace outeffhop {

/// Parses and does what is asked; returns the exit code. Throws Error(usage) for a command line that makes no sense, and
/// whatever the command throws.
int run_command_line(int argc, const char* const* argv);

}  // namespace outeffhop
