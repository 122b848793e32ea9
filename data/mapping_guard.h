// What happens when a mapped file is cut while it is read.
#pragma once

#include <cstddef>
#include <string>

namespace outeffhop {

/// From now on a fault inside [begin, begin + bytes), which a file that lost its end causes, is one sentence naming `path`
/// on standard error and the exit code of ErrorKind::data instead of a bare SIGBUS. The process still ends: an exception
/// cannot leave a signal handler.
void guard_mapping(const void* begin, std::size_t bytes, const std::string& path);

/// Forgets a mapping that is about to go.
void unguard_mapping(const void* begin);

}  // namespace outeffhop
