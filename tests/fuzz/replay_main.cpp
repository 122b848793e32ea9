// Runs a fuzz target once on each file given, or on each file of a directory given: the seeds, or a reproducer.
#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

#include "tests/fuzz/target.h"

int main(int argc, char** argv) {
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    if (!std::filesystem::is_directory(argv[i])) {
      files.emplace_back(argv[i]);
      continue;
    }
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const std::filesystem::path& file : files) {
    std::ifstream in(file, std::ios::binary);
    std::ostringstream contents;
    contents << in.rdbuf();
    if (!in) {
      fmt::print(stderr, "cannot read {}\n", file.string());
      return 1;
    }
    const std::string bytes = contents.str();
    fmt::print("{}: {} bytes\n", file.string(), bytes.size());
    std::fflush(stdout);  // so that the last line names the input that ends the process
    // A block of exactly its size, so that a sanitizer sees a read beyond it.
    const std::vector<std::uint8_t> input(bytes.begin(), bytes.end());
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  if (files.empty()) {
    fmt::print(stderr, "nothing to replay: give files, or directories that hold some\n");
    return 1;
  }
  return 0;
}
