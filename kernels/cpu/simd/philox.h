// Dropout bits by the hundred: the Philox rounds of random.h on many blocks at once. The results are those of
// dropout_bits_linear and dropout_bits_tiled, bit for bit.
//
// A 32 x 32 -> 64 bit product wants its factor in the low half of a 64-bit lane, and ignores the high half. So the counter
// words live in 64-bit lanes whose high halves may hold anything: no masking between rounds.
#pragma once

#include "kernels/cpu/simd/vector.h"
#include "kernels/dropout.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace outeffhop::cpu::OUTEFFHOP_ISA {

#if defined(__AVX512F__)
constexpr int kPhiloxLanes = 8;
#elif defined(__AVX2__)
constexpr int kPhiloxLanes = 4;
#else
constexpr int kPhiloxLanes = 2;
#endif
constexpr int kPhiloxBatch = 16;                       ///< blocks that one call of philox_batch makes
constexpr int kPhiloxColumns = 8 * kPhiloxBatch;       ///< columns they serve: buffers are rounded up to this

using PhiloxLanes = std::uint64_t __attribute__((vector_size(8 * kPhiloxLanes)));
using PhiloxHalves = std::uint32_t __attribute__((vector_size(4 * kPhiloxLanes)));

/// Product of the low halves of each lane.
OUTEFFHOP_INLINE PhiloxLanes multiply_low_halves(PhiloxLanes a, PhiloxLanes b) {
#if defined(__AVX512F__)
  // The masked form with every lane on: g++ 12 warns about an uninitialised value inside the plain one.
  return reinterpret_cast<PhiloxLanes>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<PhiloxLanes>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<PhiloxLanes>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

/// Words 0..3 of blocks first_block + lane, in the low half of each lane.
OUTEFFHOP_INLINE void philox_lanes(PhiloxKey key, std::uint64_t sample, std::uint32_t row, std::uint32_t first_block,
                                   PhiloxLanes words[4]) {
  PhiloxLanes lane{};
  for (int i = 0; i < kPhiloxLanes; ++i) lane[i] = static_cast<std::uint64_t>(i);
  PhiloxLanes c0 = lane + first_block;
  PhiloxLanes c1 = PhiloxLanes{} + row;
  PhiloxLanes c2 = PhiloxLanes{} + (sample & 0xffffffffu);
  PhiloxLanes c3 = PhiloxLanes{} + (sample >> 32);
  const PhiloxLanes m0 = PhiloxLanes{} + 0xD2511F53u, m1 = PhiloxLanes{} + 0xCD9E8D57u;
  std::uint32_t k0 = key.k0, k1 = key.k1;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const PhiloxLanes p0 = multiply_low_halves(c0, m0);
    const PhiloxLanes p1 = multiply_low_halves(c2, m1);
    c0 = (p1 >> 32) ^ c1 ^ (PhiloxLanes{} + k0);
    c2 = (p0 >> 32) ^ c3 ^ (PhiloxLanes{} + k1);
    c1 = p1;
    c3 = p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

/// bits[i] = dropout_bits_linear(key, sample, row, column + i) for i in [0, n). `column` is a multiple of 8. Writes n rounded
/// up to kPhiloxColumns elements.
static inline void philox_bits_linear(PhiloxKey key, std::uint64_t sample, std::uint32_t row, std::int64_t column,
                                      std::int64_t n, std::uint16_t* bits) {
  for (std::int64_t i = 0; i < n; i += kPhiloxColumns) {
    for (int b = 0; b < kPhiloxBatch; b += kPhiloxLanes) {
      PhiloxLanes w[4];
      philox_lanes(key, sample, row, static_cast<std::uint32_t>((column + i) / 8 + b), w);
      // A block is two 64-bit halves (w0, w1) and (w2, w3), stored side by side.
      const PhiloxLanes low = (w[0] & 0xffffffffu) | (w[1] << 32), high = (w[2] & 0xffffffffu) | (w[3] << 32);
#if defined(__AVX512F__)
      const PhiloxLanes first = __builtin_shufflevector(low, high, 0, 8, 1, 9, 2, 10, 3, 11);
      const PhiloxLanes second = __builtin_shufflevector(low, high, 4, 12, 5, 13, 6, 14, 7, 15);
#elif defined(__AVX2__)
      const PhiloxLanes first = __builtin_shufflevector(low, high, 0, 4, 1, 5);
      const PhiloxLanes second = __builtin_shufflevector(low, high, 2, 6, 3, 7);
#else
      const PhiloxLanes first = __builtin_shufflevector(low, high, 0, 2);
      const PhiloxLanes second = __builtin_shufflevector(low, high, 1, 3);
#endif
      std::uint16_t* to = bits + i + 8 * b;
      std::memcpy(to, &first, sizeof first);
      std::memcpy(to + 4 * kPhiloxLanes, &second, sizeof second);
    }
  }
}

/// bits[i] = dropout_bits_tiled(key, sample, row, column + i) for i in [0, n). `column` is a multiple of 32. Writes n rounded
/// up to kPhiloxColumns elements.
static inline void philox_bits_tiled(PhiloxKey key, std::uint64_t sample, std::uint32_t row, std::int64_t column,
                                     std::int64_t n, std::uint16_t* bits) {
  for (std::int64_t i = 0; i < n; i += kPhiloxColumns) {
    std::uint32_t words[4][kPhiloxBatch];
    for (int b = 0; b < kPhiloxBatch; b += kPhiloxLanes) {
      PhiloxLanes w[4];
      philox_lanes(key, sample, row, static_cast<std::uint32_t>((column + i) / 32 * 4 + b), w);
      for (int k = 0; k < 4; ++k) {
        const PhiloxHalves narrow = __builtin_convertvector(w[k], PhiloxHalves);
        std::memcpy(&words[k][b], &narrow, sizeof narrow);
      }
    }
    // Word k of the four blocks of a tile holds its columns 8 k .. 8 k + 7.
    for (int tile = 0; tile < kPhiloxBatch / 4; ++tile)
      for (int k = 0; k < 4; ++k) std::memcpy(bits + i + 32 * tile + 8 * k, &words[k][4 * tile], 16);
  }
}

/// What the next W elements are multiplied by: 0 where their bits are below the threshold, otherwise the scale.
OUTEFFHOP_INLINE vf dropout_factor(const std::uint16_t* bits, std::uint32_t threshold, float scale) {
  vh h;
  std::memcpy(&h, bits, sizeof h);
  const vi wide = __builtin_convertvector(h, vi);
  return wide < static_cast<std::int32_t>(threshold) ? splat(0.0f) : splat(scale);
}

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
