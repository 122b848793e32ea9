// Counter-based random numbers: Philox4x32 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). Every random decision of the program is a pure function of (seed, stream, global sample index, row, column),
// so there is no generator state to save, and any rank count, batch size or backend draws the same numbers.
//
// FROZEN: rounds, key layout, counter layout and the mapping from output words to elements below define the meaning of a
// seed for every past run. They may not change.
//
//   key     = stream_key(seed, stream): one Philox block of the seed, keyed by the stream (a dropout site, the masking, ...)
//   counter = { block, row, sample low word, sample high word }
//   rounds  = 7, the least that passes BigCrush (Salmon et al., section 5.1), for all uses
//
// Dropout takes 16 bits an element, so a block of four words serves eight elements. Two mappings exist:
//   linear  element c of a row: block c / 8, word (c % 8) / 2, half c % 2. Eight neighbours share a block: what a
//           16-byte bf16 access holds.
//   tiled   for attention probabilities, key column j of a row: block (j / 32) * 4 + (j % 8) / 2, word (j % 32) / 8,
//           half j % 2. One block holds the columns {2q, 2q+1} + {0, 8, 16, 24} of a 32-column tile: exactly what one
//           thread of a quad owns of four m16n8 tensor-core accumulators, so no draw is wasted on a GPU.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/host_device.h"

namespace outeffhop {

struct PhiloxKey {
  std::uint32_t k0 = 0, k1 = 0;
};

struct PhiloxBlock {
  std::uint32_t w[4];
};

constexpr int kPhiloxRounds = 7;

/// One block of Philox4x32-R. Matches the known-answer vectors of Random123 for R = 7 and R = 10.
template <int Rounds = kPhiloxRounds>
OUTEFFHOP_HOST_DEVICE inline constexpr PhiloxBlock philox(PhiloxKey key, std::uint32_t c0, std::uint32_t c1, std::uint32_t c2,
                                                   std::uint32_t c3) {
  for (int round = 0; round < Rounds; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c2;
    const auto n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ key.k0;
    const auto n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ key.k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    key.k0 += 0x9E3779B9u;
    key.k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// Streams other than dropout sites. A dropout site s (0, 1, 2, ... in model order) uses stream kStreamDropout + s.
enum Stream : std::uint32_t {
  kStreamShuffle = 1,
  kStreamMasking = 2,
  kStreamInitialisation = 3,
  kStreamDropout = 0x100,
};

/// The key of one stream of one seed.
constexpr PhiloxKey stream_key(std::uint64_t seed, std::uint32_t stream) {
  const PhiloxBlock b = philox(PhiloxKey{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}, stream,
                               0x6f757465u, 0x6666686fu, 0x70000001u);
  return {b.w[0], b.w[1]};
}

/// The block (block, row) of a global sample.
OUTEFFHOP_HOST_DEVICE inline constexpr PhiloxBlock sample_block(PhiloxKey key, std::uint64_t sample, std::uint32_t row,
                                                         std::uint32_t block) {
  return philox(key, block, row, static_cast<std::uint32_t>(sample), static_cast<std::uint32_t>(sample >> 32));
}

/// 16 random bits of (sample, row, column) in the linear mapping.
OUTEFFHOP_HOST_DEVICE inline constexpr std::uint32_t dropout_bits_linear(PhiloxKey key, std::uint64_t sample, std::uint32_t row,
                                                                  std::uint32_t column) {
  const PhiloxBlock b = sample_block(key, sample, row, column / 8);
  return (b.w[(column % 8) / 2] >> (16 * (column % 2))) & 0xffffu;
}

/// 16 random bits of (sample, row, column) in the tiled mapping (attention).
OUTEFFHOP_HOST_DEVICE inline constexpr std::uint32_t dropout_bits_tiled(PhiloxKey key, std::uint64_t sample, std::uint32_t row,
                                                                 std::uint32_t column) {
  const PhiloxBlock b = sample_block(key, sample, row, (column / 32) * 4 + (column % 8) / 2);
  return (b.w[(column % 32) / 8] >> (16 * (column % 2))) & 0xffffu;
}

/// A uniform double in [0, 1) with 53 bits from two words.
constexpr double uniform53(std::uint32_t low, std::uint32_t high) {
  return static_cast<double>((std::uint64_t{high} << 21) ^ (low >> 11)) * 0x1.0p-53;
}

}  // namespace outeffhop
