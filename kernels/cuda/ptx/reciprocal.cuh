// The reciprocal unit alone.
#pragma once

#include <cuda_runtime.h>

namespace outeffhop::cuda::ptx {

/// 1 / x within one unit in the last place, but 0 where that would be below 2^-126: one instruction, where a division takes
/// eight and a branch. Infinity gives 0, NaN stays NaN.
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace outeffhop::cuda::ptx
