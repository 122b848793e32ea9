#include "tests/test_support.h"

#include <cstdlib>

namespace outeffhop::test {

std::mt19937_64 generator(std::uint64_t seed) {
  if (const char* extra = std::getenv("OUTEFFHOP_TEST_SEED"))
    seed += std::strtoull(extra, nullptr, 10) * 0x9E3779B97F4A7C15u;
  return std::mt19937_64(seed);
}

std::vector<double> normal_values(std::mt19937_64& rng, std::size_t count, double scale) {
  std::normal_distribution<double> normal(0.0, scale);
  std::vector<double> values(count);
  for (double& v : values) v = normal(rng);
  return values;
}

void append_key_ranges(const std::vector<std::int64_t>& documents, std::int64_t T, std::vector<std::int32_t>& ranges) {
  const std::size_t end_of_row = ranges.size() + 2 * static_cast<std::size_t>(T);
  std::int64_t begin = 0;
  for (const std::int64_t length : documents) {
    for (std::int64_t t = 0; t < length; ++t) {
      ranges.push_back(static_cast<std::int32_t>(begin));
      ranges.push_back(static_cast<std::int32_t>(begin + length));
    }
    begin += length;
  }
  require(ranges.size() <= end_of_row, "documents of {} tokens do not fit a row of {}", begin, T);
  ranges.resize(end_of_row, static_cast<std::int32_t>(begin));
}

TemporaryDirectory::TemporaryDirectory() {
  std::string pattern = (std::filesystem::temp_directory_path() / "outeffhop-test-XXXXXX").string();
  if (!mkdtemp(pattern.data())) fail(ErrorKind::io, "cannot make a temporary directory from {}", pattern);
  path_ = pattern;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace outeffhop::test
