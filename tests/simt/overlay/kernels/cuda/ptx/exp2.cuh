// In place of kernels/cuda/ptx/exp2.cuh: off by the relative 2^-22 that is allowed, up or down by a bit of x; exact at
// integers, as the unit is.
#pragma once

#include <cmath>
#include <cstdint>

namespace outeffhop::cuda::ptx {

inline float exp2_flushed(float x) {
  if (x < -126.0f) return 0.0f;
  const float y = std::exp2(x);
  if (x == std::rint(x)) return y;
  return y * (__builtin_bit_cast(std::uint32_t, x) & 1u ? 1.0f + 0x1p-22f : 1.0f - 0x1p-22f);
}

}  // namespace outeffhop::cuda::ptx
