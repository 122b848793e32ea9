// Loops over rows of any length, a vector at a time: whole vectors first, then one part of a vector. The body is written
// once, as a generic lambda whose second argument says which of the two it handles.
#pragma once

#include "kernels/cpu/simd/vector.h"

#define OUTEFFHOP_BODY __attribute__((always_inline))

namespace outeffhop::cpu::OUTEFFHOP_ISA {

struct Whole {};
struct Part {
  std::int64_t count;  ///< 1 to W - 1
};

/// body(c, Whole) for each whole vector of [begin, end), then body(c, Part) for what is left.
template <class Body>
OUTEFFHOP_INLINE void for_vectors(std::int64_t begin, std::int64_t end, Body&& body) {
  std::int64_t c = begin;
  for (; c + W <= end; c += W) body(c, Whole{});
  if (c < end) body(c, Part{end - c});
}

template <class T>
OUTEFFHOP_INLINE vf load(const T* p, Whole) {
  return load(p);
}
template <class T>
OUTEFFHOP_INLINE vf load(const T* p, Part part) {
  return load_part(p, part.count);
}
template <class T>
OUTEFFHOP_INLINE void store(T* p, vf x, Whole) {
  store(p, x);
}
template <class T>
OUTEFFHOP_INLINE void store(T* p, vf x, Part part) {
  store_part(p, x, part.count);
}

/// x with the lanes that lie outside the row replaced by `other`.
OUTEFFHOP_INLINE vf keep(vf x, Whole, float /*other*/) { return x; }
OUTEFFHOP_INLINE vf keep(vf x, Part part, float other) {
  vi lane;
  for (int i = 0; i < W; ++i) lane[i] = i;
  return lane < static_cast<std::int32_t>(part.count) ? x : splat(other);
}

/// x as it would be stored.
OUTEFFHOP_INLINE vf rounded(vf x, const float*) { return x; }
OUTEFFHOP_INLINE vf rounded(vf x, const bf16*) {
  bf16 lanes[W];
  store(lanes, x);
  return load(lanes);
}

/// Sum of the lanes in double, by halving.
OUTEFFHOP_INLINE double sum_in_double(vf x) {
  float lanes[W];
  store(lanes, x);
  double t[W];
  for (int i = 0; i < W; ++i) t[i] = static_cast<double>(lanes[i]);
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) t[i] += t[i + half];
  return t[0];
}

/// Runs the statement with S standing for the element type of `dtype`, fp32 or bf16.
#define OUTEFFHOP_FOR_STORAGE(dtype, ...) \
  do {                                    \
    if ((dtype) == DType::bf16) {         \
      using S = bf16;                     \
      __VA_ARGS__;                        \
    } else {                              \
      using S = float;                    \
      __VA_ARGS__;                        \
    }                                     \
  } while (0)

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
