// A value that the compiler knows nothing about.
#pragma once

#include <cuda_runtime.h>

namespace outeffhop::cuda::ptx {

/// x, computed anew each time. What depends on it stays inside of the loop that it is called in: moved out of an outer loop,
/// as compilers like to, values that are needed once a turn take registers from the inner one.
__device__ __forceinline__ unsigned opaque(unsigned x) {
  unsigned y;
  asm volatile("mov.b32 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

}  // namespace outeffhop::cuda::ptx
