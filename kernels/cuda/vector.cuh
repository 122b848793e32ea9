// Eight neighbouring elements at a time, in fp32 registers: 16 bytes of bf16 or twice 16 bytes of fp32 in memory, and what
// one Philox block of dropout serves.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/words.cuh"
#include "kernels/tensor.h"

namespace outeffhop::cuda {

constexpr int kVector = 8;

struct Vector {
  float at[kVector];
};

/// A vector as it lies in memory.
template <class T>
struct PackedVector {
  Words words[kVector / kInWords<T>];
};

/// The vector at p, a multiple of 16 bytes. Nothing waits for it until it is unpacked, so that vectors loaded one after the
/// other are under way together.
template <class T>
__device__ __forceinline__ PackedVector<T> load_packed(const T* p) {
  PackedVector<T> packed;
#pragma unroll
  for (int k = 0; k < kVector / kInWords<T>; ++k) packed.words[k] = reinterpret_cast<const Words*>(p)[k];
  return packed;
}

template <class T>
__device__ __forceinline__ Vector unpack(const PackedVector<T>& packed) {
  Vector x;
#pragma unroll
  for (int i = 0; i < kVector; ++i) x.at[i] = element_of<T>(packed.words[i / kInWords<T>], i % kInWords<T>);
  return x;
}

/// Each element rounded once.
template <class T>
__device__ __forceinline__ PackedVector<T> pack(const Vector& x) {
  PackedVector<T> packed;
#pragma unroll
  for (int k = 0; k < kVector / kInWords<T>; ++k) {
    float elements[kInWords<T>];
#pragma unroll
    for (int i = 0; i < kInWords<T>; ++i) elements[i] = x.at[k * kInWords<T> + i];
    packed.words[k] = words_of<T>(elements);
  }
  return packed;
}

/// Elements p[0..valid) as floats, 0 beyond. `aligned`: p is a multiple of 16 bytes, so that whole vectors take 16-byte
/// loads.
template <class T>
__device__ __forceinline__ Vector load_vector(const T* p, int valid, bool aligned) {
  if (aligned && valid >= kVector) return unpack(load_packed(p));
  Vector x;
#pragma unroll
  for (int i = 0; i < kVector; ++i) x.at[i] = i < valid ? static_cast<float>(p[i]) : 0.0f;
  return x;
}

/// Stores x.at[0..valid) at p, rounded once.
template <class T>
__device__ __forceinline__ void store_vector(T* p, const Vector& x, int valid, bool aligned) {
  if (aligned && valid >= kVector) {
    const PackedVector<T> packed = pack<T>(x);
#pragma unroll
    for (int k = 0; k < kVector / kInWords<T>; ++k) reinterpret_cast<Words*>(p)[k] = packed.words[k];
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
