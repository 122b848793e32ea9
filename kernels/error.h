// The one exception type of the library. Every throw says what was attempted and on which value; `main` catches it
// once, prints one line and exits with the code of its kind. User mistakes are never asserts.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#if !defined(__CUDACC__)  // fmt 9 does not compile as nvcc's C++20: what a .cu file complains of is worded in a .cpp file
#include <fmt/format.h>
#endif

namespace outeffhop {

/// What went wrong, in the user's terms. The value is the process exit code (README, "Exit codes").
enum class ErrorKind : int {
  internal = 1,     ///< a broken promise inside the program: a bug of ours
  usage = 2,        ///< the command line, or a config key or value
  data = 3,         ///< a token shard, its metadata, or a batch file
  checkpoint = 4,   ///< a checkpoint or a safetensors file
  io = 5,           ///< the file system: missing, unwritable, full
  unsupported = 6,  ///< asks for what this build, backend or machine does not have
  diverged = 7,     ///< training produced non-finite values too many times in a row
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

#if !defined(__CUDACC__)
/// Throws Error(kind) with a message in fmt syntax: fail(ErrorKind::data, "cannot read {}: {}", path, why).
template <class... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

/// Throws ErrorKind::internal unless `condition` holds: for promises between our own parts.
template <class... Args>
void require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) throw Error(ErrorKind::internal, fmt::format(format, std::forward<Args>(args)...));
}
#endif

}  // namespace outeffhop
