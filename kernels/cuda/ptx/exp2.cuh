// The exponential unit alone.
#pragma once

#include <cuda_runtime.h>

namespace outeffhop::cuda::ptx {

/// 2^x to a relative 2^-22, as exp2f, but 0 where that would be below 2^-126: exp2f spends three of its four instructions on
/// such results. -infinity gives 0, NaN stays NaN.
__device__ __forceinline__ float exp2_flushed(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace outeffhop::cuda::ptx
