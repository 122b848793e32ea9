// The order of the data: a permutation that needs no array, and windows that tell where they came from.
#include "data/sampler.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "tests/data/data_support.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

std::vector<std::uint64_t> permuted(std::uint64_t size, std::uint64_t seed, std::uint64_t epoch) {
  const Permutation permutation(size, seed, epoch);
  std::vector<std::uint64_t> values(size);
  for (std::uint64_t i = 0; i < size; ++i) values[i] = permutation(i);
  return values;
}

std::vector<std::int32_t> sampled(const StreamSampler& sampler, std::uint64_t k) {
  Batch batch;
  batch.input_ids.assign(static_cast<std::size_t>(sampler.length()), -1);
  sampler.fill(k, 65536, batch, 0);
  return batch.input_ids;
}

}  // namespace

TEST_CASE("the permutation is one, at every size") {
  std::vector<std::uint64_t> sizes(200);
  std::iota(sizes.begin(), sizes.end(), 1);
  sizes.insert(sizes.end(), {1000, 4095, 4096, 4097, 65537});
  for (const std::uint64_t size : sizes) {
    for (const std::uint64_t epoch : {0u, 1u, 7u}) {
      std::vector<std::uint64_t> values = permuted(size, 42, epoch);
      std::sort(values.begin(), values.end());
      std::vector<std::uint64_t> all(size);
      std::iota(all.begin(), all.end(), 0);
      INFO("size " << size << " epoch " << epoch);
      REQUIRE(values == all);
    }
  }
}

TEST_CASE("the permutation reaches large sizes") {
  for (const std::uint64_t size : {(std::uint64_t{1} << 33) + 1, (std::uint64_t{1} << 48) - 1, std::uint64_t{1} << 63}) {
    const Permutation permutation(size, 1, 2);
    std::set<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < 1000; ++i) {
      const std::uint64_t value = permutation(size - 1 - i);
      CHECK(value < size);
      seen.insert(value);
    }
    CHECK(seen.size() == 1000);
    // 1000 uniform draws all in the lower half: probability 2^-1000.
    CHECK(*seen.rbegin() > size / 2);
  }
  CHECK_THROWS_AS(Permutation(0, 1, 1), Error);
  CHECK_THROWS_AS(Permutation(5, 1, 1)(5), Error);
}

TEST_CASE("seed and epoch choose the permutation") {
  const std::vector<std::uint64_t> base = permuted(1000, 42, 0);
  CHECK(base == permuted(1000, 42, 0));
  for (const auto& [seed, epoch] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
           {42, 1}, {43, 0}, {42, std::uint64_t{1} << 32}, {42 + (std::uint64_t{1} << 32), 0}}) {
    const std::vector<std::uint64_t> other = permuted(1000, seed, epoch);
    // Two random permutations agree in one place on average; 10 or more has probability 1e-7.
    const auto same = std::inner_product(base.begin(), base.end(), other.begin(), 0, std::plus<>(), std::equal_to<>());
    INFO("seed " << seed << " epoch " << epoch);
    CHECK(same < 10);
  }
}

TEST_CASE("the permutation's values are frozen") {
  // Computed by an independent implementation in Python of the definition in data/sampler.h. A change here means that runs
  // made before it cannot be resumed or repeated.
  CHECK(permuted(10, 0, 0) == std::vector<std::uint64_t>{0, 8, 7, 9, 1, 2, 3, 5, 4, 6});
  CHECK(permuted(10, 1234, 3) == std::vector<std::uint64_t>{2, 7, 9, 1, 0, 3, 8, 6, 5, 4});
  CHECK(permuted(3, 1, 5) == std::vector<std::uint64_t>{1, 2, 0});
  const Permutation large(1'000'000'007, 0x123456789abcdef0u, std::uint64_t{1} << 33);
  std::vector<std::uint64_t> values;
  for (const std::uint64_t i : {0u, 1u, 2u, 999'999'999u}) values.push_back(large(i));
  CHECK(values == std::vector<std::uint64_t>{212268181, 992623775, 681772088, 785732992});
}

TEST_CASE("over the epochs every order of a small set is equally likely") {
  // Chi-squared with 5 (size 3) and 23 (size 4) degrees of freedom; the bounds are the 1 - 1e-6 quantiles.
  for (const auto& [size, orders, bound] :
       std::vector<std::tuple<std::uint64_t, double, double>>{{3, 6, 35.9}, {4, 24, 70.5}}) {
    constexpr int kEpochs = 12000;
    std::map<std::vector<std::uint64_t>, int> counts;
    for (std::uint64_t epoch = 0; epoch < kEpochs; ++epoch) ++counts[permuted(size, 7, epoch)];
    CHECK(counts.size() == static_cast<std::size_t>(orders));
    const double expected = kEpochs / orders;
    double chi_squared = 0.0;
    for (const auto& [order, count] : counts) chi_squared += (count - expected) * (count - expected) / expected;
    INFO("size " << size << " chi squared " << chi_squared);
    CHECK(chi_squared < bound);
  }
}

TEST_CASE("positions are uniform over the epochs at a size that walks the cycle") {
  // Element 0 of a permutation of 17 (domain 64): chi-squared with 16 degrees of freedom, 1 - 1e-6 quantile 58.9.
  constexpr int kEpochs = 17000;
  std::vector<int> counts(17);
  for (std::uint64_t epoch = 0; epoch < kEpochs; ++epoch) ++counts[Permutation(17, 9, epoch)(0)];
  double chi_squared = 0.0;
  for (const int count : counts) chi_squared += (count - 1000.0) * (count - 1000.0) / 1000.0;
  INFO("chi squared " << chi_squared);
  CHECK(chi_squared < 58.9);
}

TEST_CASE("windows stay inside their shard and leave the tail out") {
  const TemporaryDirectory directory;
  write_shard(directory.path() / "0.bin", counting_tokens(10, 100));  // windows of 4: 100.., 104..
  write_shard(directory.path() / "1.bin", counting_tokens(3, 200));   // too short for one
  write_shard(directory.path() / "2.bin", counting_tokens(4, 300));
  write_shard(directory.path() / "3.bin", counting_tokens(2, 400));  // too short, at the end
  const ShardSet shards(directory.path().string() + "/*.bin");
  const StreamSampler sampler(shards, 4, 5, false);
  REQUIRE(sampler.sample_count() == 3);
  CHECK(sampled(sampler, 0) == std::vector<std::int32_t>{100, 101, 102, 103});
  CHECK(sampled(sampler, 1) == std::vector<std::int32_t>{104, 105, 106, 107});
  CHECK(sampled(sampler, 2) == std::vector<std::int32_t>{300, 301, 302, 303});
  CHECK(sampled(sampler, 3) == sampled(sampler, 0));

  CHECK_ERROR(ErrorKind::usage, StreamSampler(shards, 0, 5, false), "0 tokens");
  CHECK_ERROR(ErrorKind::data, StreamSampler(shards, 11, 5, false), "11 tokens", "0.bin", "10");
}

TEST_CASE("an epoch reads every window once, the next in another order") {
  const TemporaryDirectory directory;
  write_shard(directory.path() / "0.bin", counting_tokens(8 * 61 + 3));
  write_shard(directory.path() / "1.bin", counting_tokens(8 * 39, 1000));
  const ShardSet shards(directory.path().string() + "/*.bin");
  const StreamSampler sampler(shards, 8, 5, true);
  REQUIRE(sampler.sample_count() == 100);
  std::vector<std::vector<std::int32_t>> orders;
  for (std::uint64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<std::int32_t> firsts;
    for (std::uint64_t k = 0; k < 100; ++k) {
      const std::vector<std::int32_t> tokens = sampled(sampler, epoch * 100 + k);
      firsts.push_back(tokens.front());
      for (int t = 1; t < 8; ++t) CHECK(tokens[static_cast<std::size_t>(t)] == tokens[0] + t);
    }
    std::vector<std::int32_t> sorted = firsts;
    std::sort(sorted.begin(), sorted.end());
    CHECK(std::unique(sorted.begin(), sorted.end()) - sorted.begin() == 100);
    orders.push_back(firsts);
  }
  CHECK(orders[0] != orders[1]);
  CHECK(orders[1] != orders[2]);
  const StreamSampler again(shards, 8, 5, true);
  const StreamSampler other_seed(shards, 8, 6, true);
  std::vector<std::int32_t> repeated, reseeded;
  for (std::uint64_t k = 0; k < 100; ++k) {
    repeated.push_back(sampled(again, k).front());
    reseeded.push_back(sampled(other_seed, k).front());
  }
  CHECK(repeated == orders[0]);
  CHECK(reseeded != orders[0]);
}

TEST_CASE("a token outside the vocabulary names shard and position") {
  const TemporaryDirectory directory;
  write_shard(directory.path() / "0.bin", counting_tokens(8));
  const std::string path = write_shard(directory.path() / "1.bin", {1, 2, 3, 4, 5, 6, 999, 7});
  std::string wide = shard_header({20240520u, 2u, 4u, 4u, 0u});
  for (const std::uint32_t token : {1u, 0xffffffffu, 3u, 4u}) append_little_endian(wide, token, 4);
  const std::string wide_path = write_bytes(directory.path() / "2.bin", wide);
  const ShardSet shards(directory.path().string() + "/*.bin");
  const StreamSampler sampler(shards, 4, 0, false);
  Batch batch;
  batch.input_ids.resize(4);
  sampler.fill(3, 1000, batch, 0);
  CHECK(batch.input_ids == std::vector<std::int32_t>{5, 6, 999, 7});
  CHECK_ERROR(ErrorKind::data, sampler.fill(3, 999, batch, 0), path, "token 999", "position 6", "999 ids");
  CHECK_ERROR(ErrorKind::data, sampler.fill(4, 65536, batch, 0), wide_path, "token 4294967295", "position 1");
}
