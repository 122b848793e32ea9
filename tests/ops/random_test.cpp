// The generator against its published vectors, and the frozen mappings against an independent statement of them.
#include "kernels/random.h"

#include "kernels/dropout.h"
#include "tests/catch.h"

namespace outeffhop::test {
namespace {

using Words = std::array<std::uint32_t, 4>;

Words words(const PhiloxBlock& block) { return {block.w[0], block.w[1], block.w[2], block.w[3]}; }

constexpr std::uint32_t kOnes = 0xffffffffu;

}  // namespace

TEST_CASE("Philox gives the known answers of Random123") {
  CHECK(words(philox<7>({0, 0}, 0, 0, 0, 0)) == Words{0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48});
  CHECK(words(philox<7>({kOnes, kOnes}, kOnes, kOnes, kOnes, kOnes)) ==
        Words{0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662});
  CHECK(words(philox<7>({0xa4093822, 0x299f31d0}, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344)) ==
        Words{0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a});
  CHECK(words(philox<10>({0, 0}, 0, 0, 0, 0)) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(words(philox<10>({kOnes, kOnes}, kOnes, kOnes, kOnes, kOnes)) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(words(philox<10>({0xa4093822, 0x299f31d0}, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344)) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

// Computed by a separate implementation (Python integers) of the layout in the head of random.h.
TEST_CASE("stream keys are frozen") {
  const auto key = [](std::uint64_t seed, std::uint32_t stream) {
    const PhiloxKey k = stream_key(seed, stream);
    return std::array<std::uint32_t, 2>{k.k0, k.k1};
  };
  CHECK(key(0, kStreamShuffle) == std::array<std::uint32_t, 2>{0xd2d1c9c0, 0xb644a933});
  CHECK(key(1234, kStreamDropout) == std::array<std::uint32_t, 2>{0x237aad82, 0x69c1f119});
  CHECK(key(0x123456789abcdef0, kStreamDropout + 5) == std::array<std::uint32_t, 2>{0x3cfd6802, 0x56044e10});
  CHECK(key(42, kStreamInitialisation) == std::array<std::uint32_t, 2>{0x66cb688a, 0x8c851e88});
}

TEST_CASE("dropout draws are frozen") {
  const PhiloxKey key = stream_key(1234, kStreamDropout);
  CHECK(dropout_bits_linear(key, 0, 0, 0) == 0xec38);
  CHECK(dropout_bits_linear(key, 5, 17, 7) == 0x90d9);
  CHECK(dropout_bits_linear(key, std::uint64_t{1} << 40, 511, 47) == 0x8291);
  CHECK(dropout_bits_linear(key, 7, 3, 780) == 0x707d);
  CHECK(dropout_bits_tiled(key, 0, 0, 0) == 0xec38);
  CHECK(dropout_bits_tiled(key, 5, 17, 7) == 0x72a1);
  CHECK(dropout_bits_tiled(key, std::uint64_t{1} << 40, 511, 47) == 0xa72c);
  CHECK(dropout_bits_tiled(key, 7, 3, 780) == 0x9269);
}

// The mappings the other way round: walk the words of the blocks and say which column each half serves.
TEST_CASE("a block of the linear mapping serves eight neighbours") {
  const PhiloxKey key = stream_key(7, kStreamDropout + 3);
  for (std::uint32_t block = 0; block < 40; ++block) {
    const PhiloxBlock numbers = philox(key, block, 9, 0xdeadbeef, 0x12);
    for (std::uint32_t word = 0; word < 4; ++word) {
      CHECK(dropout_bits_linear(key, 0x12deadbeef, 9, 8 * block + 2 * word) == (numbers.w[word] & 0xffff));
      CHECK(dropout_bits_linear(key, 0x12deadbeef, 9, 8 * block + 2 * word + 1) == numbers.w[word] >> 16);
    }
  }
}

TEST_CASE("a block of the tiled mapping serves the columns that a thread of a quad owns") {
  const PhiloxKey key = stream_key(7, kStreamDropout + 3);
  for (std::uint32_t tile = 0; tile < 10; ++tile)
    for (std::uint32_t q = 0; q < 4; ++q) {
      const PhiloxBlock numbers = philox(key, tile * 4 + q, 9, 0xdeadbeef, 0x12);
      for (std::uint32_t word = 0; word < 4; ++word) {
        const std::uint32_t column = 32 * tile + 2 * q + 8 * word;
        CHECK(dropout_bits_tiled(key, 0x12deadbeef, 9, column) == (numbers.w[word] & 0xffff));
        CHECK(dropout_bits_tiled(key, 0x12deadbeef, 9, column + 1) == numbers.w[word] >> 16);
      }
    }
}

TEST_CASE("dropout keeps its rate, and its scale makes the expectation exact") {
  for (const double p : {0.1, 0.5, 0.9}) {
    const Dropout dropout = Dropout::make(p, 99, 2, nullptr);
    CHECK(dropout.threshold == static_cast<std::uint32_t>(std::lround(65536 * p)));
    const double keep = 1.0 - dropout.threshold / 65536.0;
    CHECK(std::fabs(dropout.scale * keep - 1.0) <= 0x1p-24);  // the rounding of the scale to fp32
    std::int64_t kept_linear = 0, kept_tiled = 0;
    constexpr std::int64_t kRows = 200, kColumns = 512, kDraws = kRows * kColumns;
    for (std::uint32_t row = 0; row < kRows; ++row)
      for (std::uint32_t column = 0; column < kColumns; ++column) {
        kept_linear += dropout_bits_linear(dropout.key, 3, row, column) >= dropout.threshold;
        kept_tiled += dropout_bits_tiled(dropout.key, 3, row, column) >= dropout.threshold;
      }
    // Five standard deviations of a binomial: a sound generator fails this once in two million seeds; the seed is fixed.
    const double deviation = 5 * std::sqrt(kDraws * keep * (1 - keep));
    CHECK(std::fabs(kept_linear - kDraws * keep) < deviation);
    CHECK(std::fabs(kept_tiled - kDraws * keep) < deviation);
  }
  CHECK_FALSE(Dropout::make(0.0, 1, 0, nullptr));
}

TEST_CASE("neighbouring rows, samples, sites and seeds draw unrelated masks") {
  const auto mask = [](std::uint64_t seed, std::uint32_t site, std::uint64_t sample, std::uint32_t row) {
    std::vector<bool> bits;
    const PhiloxKey key = stream_key(seed, kStreamDropout + site);
    for (std::uint32_t column = 0; column < 4096; ++column)
      bits.push_back(dropout_bits_linear(key, sample, row, column) < 0x8000);
    return bits;
  };
  const auto base = mask(1, 0, 10, 4);
  for (const auto& other : {mask(2, 0, 10, 4), mask(1, 1, 10, 4), mask(1, 0, 11, 4), mask(1, 0, 10, 5)}) {
    std::int64_t equal = 0;
    for (std::size_t i = 0; i < base.size(); ++i) equal += base[i] == other[i];
    CHECK(std::fabs(equal - 2048.0) < 5 * 32);  // five standard deviations of 4096 fair coins
  }
}

TEST_CASE("uniform53 lies in [0, 1), reaches both ends and uses all 53 bits") {
  CHECK(uniform53(0, 0) == 0.0);
  CHECK(uniform53(kOnes, kOnes) == 1.0 - 0x1p-53);
  CHECK(uniform53(1u << 11, 0) == 0x1p-53);    // the lowest bit that counts
  CHECK(uniform53((1u << 11) - 1, 0) == 0.0);  // those below it do not
  CHECK(uniform53(0, 1) == 0x1p-32);
  CHECK(uniform53(0, 0x80000000u) == 0.5);
}

}  // namespace outeffhop::test
