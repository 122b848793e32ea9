// What softmax needs on vectors as wide as the registers of this level: exp of differences with a maximum, sums and maxima
// of a vector, and rows that end inside one.
#pragma once

#include "kernels/cpu/simd/tile_product.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

using NativeInts = std::int32_t __attribute__((vector_size(4 * kNativeLanes)));
using NativeWords = std::uint32_t __attribute__((vector_size(4 * kNativeLanes)));

OUTEFFHOP_INLINE NativeVector broadcast(float x) { return x - NativeVector{}; }

/// Of two numbers the larger; `a` where one of them is NaN.
OUTEFFHOP_INLINE NativeVector larger_of(NativeVector a, NativeVector b) { return b > a ? b : a; }

/// exp for arguments that are at most about 0, to 1 ulp; below -87.3 exactly 0; NaN stays NaN. As vector.h does it, less
/// what only large arguments need: one factor 2^k is enough. In exp r = 1 + r (1 + r q(r)), q interpolates at Chebyshev
/// nodes, to 1e-8 of the result.
OUTEFFHOP_INLINE NativeVector exp_of_difference(NativeVector x) {
  const NativeVector lowest = broadcast(-87.3f);
  const NativeVector inside = x < lowest ? lowest : x;
  const NativeVector magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const NativeVector shifted = inside * broadcast(1.44269504088896341f) + magic;
  const NativeVector k = shifted - magic;
  NativeVector r = inside - k * broadcast(0.693145751953125f);
  r = r - k * broadcast(1.42860682030941723e-6f);
  NativeVector q = broadcast(0.00139262504f) * r + broadcast(0.00836323295f);
  q = q * r + broadcast(0.0416665524f);
  q = q * r + broadcast(0.166665763f);
  q = q * r + broadcast(0.5f);
  const NativeVector p = (q * r + broadcast(1.0f)) * r + broadcast(1.0f);
  // Unsigned: in lanes that the caller masks away k may be anything.
  const auto power = reinterpret_cast<NativeVector>((reinterpret_cast<NativeWords>(shifted) << 23) + 0x3f800000u);
  return x < lowest ? NativeVector{} : p * power;
}

/// Lanes below `count` keep x, the others become `other`.
OUTEFFHOP_INLINE NativeVector first_lanes(NativeVector x, std::int64_t count, float other) {
  static constexpr std::int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  NativeInts lane;
  std::memcpy(&lane, numbers, sizeof lane);
  const auto end = static_cast<std::int32_t>(count < kNativeLanes ? count : kNativeLanes);
  return lane < end ? x : broadcast(other);
}

/// Folds a vector in half until one lane is left.
template <class Fold>
OUTEFFHOP_INLINE float fold_lanes(NativeVector x, const Fold& fold) {
  using Four = float __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  const auto eight = fold(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
                          __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
  const Four four =
      fold(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
#elif defined(__AVX__)
  const Four four = fold(__builtin_shufflevector(x, x, 0, 1, 2, 3), __builtin_shufflevector(x, x, 4, 5, 6, 7));
#else
  const Four four = x;
#endif
  const Four two = fold(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
  return fold(two, __builtin_shufflevector(two, two, 1, 1, 1, 1))[0];
}
OUTEFFHOP_INLINE float sum_of_lanes(NativeVector x) {
  return fold_lanes(x, [](auto a, auto b) { return a + b; });
}
OUTEFFHOP_INLINE float largest_lane(NativeVector x) {
  return fold_lanes(x, [](auto a, auto b) { return b > a ? b : a; });
}

/// What one vector of probabilities is multiplied by: 0 where the random bits are below the threshold, otherwise the scale.
OUTEFFHOP_INLINE NativeVector kept_scale(const std::uint16_t* bits, std::uint32_t threshold, float scale) {
  using Halves = std::uint16_t __attribute__((vector_size(2 * kNativeLanes)));
  Halves halves;
  std::memcpy(&halves, bits, sizeof halves);
  const NativeInts wide = __builtin_convertvector(halves, NativeInts);
  return wide < static_cast<std::int32_t>(threshold) ? NativeVector{} : broadcast(scale);
}

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
