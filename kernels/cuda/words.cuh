// 16 bytes as they lie in memory: four fp32 or eight bf16. For kernels that hold elements long before they use them: as
// words they take half the registers of Vector's floats, or none in a copy.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/ptx/bf16_pair.cuh"
#include "kernels/tensor.h"

namespace outeffhop::cuda {

struct alignas(16) Words {
  std::uint32_t at[4];
};

/// Elements of type T in 16 bytes.
template <class T>
constexpr int kInWords = 16 / static_cast<int>(sizeof(T));

/// Element i; i is known when the code is compiled.
template <class T>
__device__ __forceinline__ float element_of(const Words& words, int i) {
  if constexpr (sizeof(T) == 4) {
    return __uint_as_float(words.at[i]);
  } else {
    return __uint_as_float(i % 2 == 0 ? words.at[i / 2] << 16 : words.at[i / 2] & 0xffff0000u);
  }
}

/// Sixteen bytes of T from kInWords<T> floats.
template <class T>
__device__ __forceinline__ Words words_of(const float (&x)[kInWords<T>]) {
  Words words;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      words.at[i] = __float_as_uint(x[i]);
    } else {
      words.at[i] = ptx::bf16_pair(x[2 * i], x[2 * i + 1]);
    }
  }
  return words;
}

}  // namespace outeffhop::cuda
