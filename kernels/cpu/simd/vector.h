// Floats by the register, in GCC/Clang vector extensions: one source for AVX-512 (16 lanes), AVX2 (8) and plain x86-64 or Arm
// (4). Never wider than a register: GCC keeps such vectors in memory, at a fifth of the speed.
//
// Include only from sources in kernels/cpu/simd/, inside whose per-level namespace everything here lands, so that no code
// compiled for one level can be linked into another.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/tensor.h"

#ifndef OUTEFFHOP_ISA
#error "OUTEFFHOP_ISA names the namespace of this instruction-set level; CMakeLists.txt sets it"
#endif

namespace outeffhop::cpu::OUTEFFHOP_ISA {

// W: lanes. A power of two, at most 16.
#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

using vf = float __attribute__((vector_size(4 * W)));
using vi = std::int32_t __attribute__((vector_size(4 * W)));
using vu = std::uint32_t __attribute__((vector_size(4 * W)));
using vh = std::uint16_t __attribute__((vector_size(2 * W)));

#define OUTEFFHOP_INLINE static inline __attribute__((always_inline))

OUTEFFHOP_INLINE vf splat(float x) { return vf{} + x; }

OUTEFFHOP_INLINE vf load(const float* p) {
  vf r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
OUTEFFHOP_INLINE void store(float* p, vf x) { std::memcpy(p, &x, sizeof x); }

OUTEFFHOP_INLINE vf load(const bf16* p) {
  vh h;
  std::memcpy(&h, p, sizeof h);
  return reinterpret_cast<vf>(__builtin_convertvector(h, vu) << 16);
}
/// Rounds to nearest, ties to even; NaN stays NaN.
OUTEFFHOP_INLINE void store(bf16* p, vf x) {
  const vu u = reinterpret_cast<vu>(x);
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const vu quiet = (u >> 16) | 0x40u;
  const vu result = (x != x) ? quiet : rounded;
  const vh h = __builtin_convertvector(result, vh);
  std::memcpy(static_cast<void*>(p), &h, sizeof h);
}

// The first `count` lanes (0..W); the others read as 0 and are not written.
template <class T>
OUTEFFHOP_INLINE vf load_part(const T* p, std::int64_t count) {
  T tmp[W] = {};
  std::memcpy(static_cast<void*>(tmp), p, sizeof(T) * static_cast<std::size_t>(count));
  return load(tmp);
}
template <class T>
OUTEFFHOP_INLINE void store_part(T* p, vf x, std::int64_t count) {
  T tmp[W];
  store(tmp, x);
  std::memcpy(static_cast<void*>(p), tmp, sizeof(T) * static_cast<std::size_t>(count));
}

OUTEFFHOP_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
OUTEFFHOP_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
OUTEFFHOP_INLINE vf abs(vf a) { return reinterpret_cast<vf>(reinterpret_cast<vu>(a) & 0x7fffffffu); }

/// Sum and maximum of the lanes, by halving.
OUTEFFHOP_INLINE float sum(vf x) {
  float t[W];
  store(t, x);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) t[i] += t[i + half];
  return t[0];
}
OUTEFFHOP_INLINE float hmax(vf x) {
  float t[W];
  store(t, x);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) t[i] = t[i] > t[i + half] ? t[i] : t[i + half];
  return t[0];
}

/// exp to about 1 ulp on [-87.3, 88.7]; below it exactly 0, above it +infinity; NaN stays NaN. Range reduction by ln 2 in
/// two parts (Cody, Waite) and a polynomial of degree 7 on [-ln2/2, ln2/2].
OUTEFFHOP_INLINE vf exp(vf x) {
  const vf log2e = splat(1.44269504088896341f);
  const vf ln2_high = splat(0.693145751953125f), ln2_low = splat(1.42860682030941723e-6f);
  const vf clamped = min(max(x, splat(-87.5f)), splat(88.8f));
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vf shifted = clamped * log2e + magic;
  const vf k = shifted - magic;
  vf r = clamped - k * ln2_high;
  r = r - k * ln2_low;
  vf p = splat(1.0f / 5040.0f);
  p = p * r + splat(1.0f / 720.0f);
  p = p * r + splat(1.0f / 120.0f);
  p = p * r + splat(1.0f / 24.0f);
  p = p * r + splat(1.0f / 6.0f);
  p = p * r + splat(0.5f);
  p = p * r + splat(1.0f);
  p = p * r + splat(1.0f);
  // 2^k in two steps, so that k = 128 and the subnormal edge stay exact.
  const vi ki = __builtin_convertvector(k, vi);
  const vi half = ki >> 1;
  const vf s1 = reinterpret_cast<vf>((half + 127) << 23);
  const vf s2 = reinterpret_cast<vf>((ki - half + 127) << 23);
  vf y = p * s1 * s2;
  y = x < splat(-87.33654f) ? splat(0.0f) : y;
  y = x > splat(88.72284f) ? splat(__builtin_inff()) : y;
  return x != x ? x : y;
}

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
