// What the fuzz targets share. A target is one file that defines LLVMFuzzerTestOneInput: it gives the input to a parser and
// lets every exception out that is not a refusal in the user's terms. Linked with libFuzzer (scripts/fuzz.sh) it meets
// inputs without end; linked with replay_main.cpp it meets its seeds again, in every build's tests.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace outeffhop::fuzz {

/// Ends the process, which libFuzzer reports together with the input.
[[noreturn]] inline void finding(const std::string& what) {
  std::fprintf(stderr, "finding: %s\n", what.c_str());
  std::abort();
}

/// The value of `parse()`, or nothing where it refuses the input: by an Error of one of `kinds` whose message names
/// `origin`.
template <class Parse>
auto value_or_refusal(const std::string& origin, std::initializer_list<ErrorKind> kinds, const Parse& parse)
    -> std::optional<decltype(parse())> {
  try {
    return parse();
  } catch (const Error& e) {
    if (std::find(kinds.begin(), kinds.end(), e.kind()) == kinds.end()) {
      finding(fmt::format("an error of kind {}: {}", static_cast<int>(e.kind()), e.what()));
    }
    if (std::string_view(e.what()).find(origin) == std::string_view::npos) {
      finding(fmt::format("a message without \"{}\": {}", origin, e.what()));
    }
    return std::nullopt;
  }
}

inline std::string_view as_text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// A file in memory, for parsers that read from a path.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view contents) : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
    if (descriptor_ < 0 || ::write(descriptor_, contents.data(), contents.size()) != static_cast<ssize_t>(contents.size())) {
      finding("the system gives no memory file");
    }
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return fmt::format("/proc/self/fd/{}", descriptor_); }

 private:
  int descriptor_;
};

}  // namespace outeffhop::fuzz
