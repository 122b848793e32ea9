// What tests of every room share: random inputs, fresh directories, the reference device.
#pragma once

#include <cstdint>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace outeffhop::test {

/// A seeded generator. The seed is printed on failure by Catch through INFO; OUTEFFHOP_TEST_SEED in the environment adds to
/// it, so that a nightly run can try fresh inputs.
std::mt19937_64 generator(std::uint64_t seed);

std::vector<double> normal_values(std::mt19937_64& rng, std::size_t count, double scale = 1.0);

/// Appends the (T, 2) key ranges of a row of T tokens that packs documents of these lengths; what is left is padding.
void append_key_ranges(const std::vector<std::int64_t>& documents, std::int64_t T, std::vector<std::int32_t>& ranges);

/// A fresh directory, removed with its contents on destruction.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  ~TemporaryDirectory();
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace outeffhop::test
