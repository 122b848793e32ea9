// Two floats rounded to bf16 by one instruction.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace outeffhop::cuda::ptx {

/// Nearest, ties to even, as the constructor of bf16; `low` comes first in memory. NaN becomes 0x7fff.
__device__ __forceinline__ std::uint32_t bf16_pair(float low, float high) {
  std::uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/// The same, with 0 in place of what is below 0.
__device__ __forceinline__ std::uint32_t bf16_pair_positive(float low, float high) {
  std::uint32_t pair;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

}  // namespace outeffhop::cuda::ptx
