// Sums and maxima over a warp or a block, always in the same order: the same bits every time.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/shared_memory.cuh"

namespace outeffhop::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
/// NaN wins: a maximum does not hide it.
struct Max {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

/// The whole warp's values combined, in every lane. All 32 lanes call it.
template <class Combine, class T>
__device__ __forceinline__ T warp_reduce(T value, Combine combine) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value = combine(value, __shfl_xor_sync(kFullMask, value, offset));
  return value;
}

/// Values that block_reduce keeps in shared memory: one a warp.
constexpr int kReduceValues = 32;

/// The whole block's values combined, in every thread; `scratch` has kReduceValues elements. The block is one-dimensional,
/// of whole warps, and all of it calls. Scratch may be used again at once.
template <class Combine, class T>
__device__ __forceinline__ T block_reduce(T value, SharedArray<T> scratch, Combine combine) {
  const int warps = static_cast<int>(blockDim.x) / kWarp, thread = static_cast<int>(threadIdx.x);
  value = warp_reduce(value, combine);
  if (thread % kWarp == 0) scratch[thread / kWarp] = value;
  __syncthreads();
  value = scratch[0];
  for (int warp = 1; warp < warps; ++warp) value = combine(value, static_cast<T>(scratch[warp]));
  __syncthreads();
  return value;
}

/// The sum of x[0..count), in every thread: each thread adds every blockDim.x-th, then the block its threads' sums.
__device__ __forceinline__ double block_sum(const double* x, std::int64_t count, SharedArray<double> scratch) {
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += x[i];
  return block_reduce(sum, scratch, Sum{});
}

}  // namespace outeffhop::cuda
