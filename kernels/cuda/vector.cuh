// Eight neighbouring elements at a time, in fp32 registers: 16 bytes of bf16 or twice 16 bytes of fp32 in memory, and what
// one Philox block of dropout serves.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/tensor.h"

namespace outeffhop::cuda {

constexpr int kVector = 8;

struct Vector {
  float at[kVector];
};

/// 16 bytes in memory.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
  T at[kSize];
};

/// Elements p[0..valid) as floats, 0 beyond. `aligned`: p is a multiple of 16 bytes, so that whole vectors take 16-byte
/// loads.
template <class T>
__device__ __forceinline__ Vector load_vector(const T* p, int valid, bool aligned) {
  Vector x;
  if (aligned && valid >= kVector) {
#pragma unroll
    for (int k = 0; k < kVector / Pack<T>::kSize; ++k) {
      const Pack<T> pack = reinterpret_cast<const Pack<T>*>(p)[k];
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; ++i) x.at[k * Pack<T>::kSize + i] = static_cast<float>(pack.at[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) x.at[i] = i < valid ? static_cast<float>(p[i]) : 0.0f;
  }
  return x;
}

/// Stores x.at[0..valid) at p, rounded once.
template <class T>
__device__ __forceinline__ void store_vector(T* p, const Vector& x, int valid, bool aligned) {
  if (aligned && valid >= kVector) {
#pragma unroll
    for (int k = 0; k < kVector / Pack<T>::kSize; ++k) {
      Pack<T> pack;
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; ++i) pack.at[i] = static_cast<T>(x.at[k * Pack<T>::kSize + i]);
      reinterpret_cast<Pack<T>*>(p)[k] = pack;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      if (i < valid) p[i] = static_cast<T>(x.at[i]);
  }
}

/// Whether a tensor of rows of `row_elements` elements allows 16-byte accesses to each of its vectors. Null does.
inline bool vectors_aligned(const ConstTensor& tensor, std::int64_t row_elements) {
  const auto bytes = row_elements * static_cast<std::int64_t>(size_of(tensor.dtype));
  return !tensor || (reinterpret_cast<std::uintptr_t>(tensor.data) % 16 == 0 && bytes % 16 == 0);
}

}  // namespace outeffhop::cuda
