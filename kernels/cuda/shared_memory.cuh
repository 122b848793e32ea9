// Dynamic shared memory, through one accessor: kernels have no static __shared__ variables. In the tests the same accessor
// checks each access (tests/simt).
#pragma once

#include <cuda_runtime.h>

namespace outeffhop::cuda {

/// An array in the block's dynamic shared memory.
template <class T>
class SharedArray {
 public:
  __device__ explicit SharedArray(T* data) : data_(data) {}
  __device__ __forceinline__ T& operator[](int i) const { return data_[i]; }
  /// For wrappers in ptx/, which take addresses.
  __device__ __forceinline__ T* address(int i) const { return data_ + i; }

 private:
  T* data_;
};

/// `count` elements that begin `offset` bytes into the block's dynamic shared memory; offset is a multiple of T's alignment.
template <class T>
__device__ __forceinline__ SharedArray<T> shared_array(int offset, [[maybe_unused]] int count) {
  extern __shared__ uint4 outeffhop_dynamic_shared_memory[];  // 16-byte aligned
  return SharedArray<T>(reinterpret_cast<T*>(reinterpret_cast<char*>(outeffhop_dynamic_shared_memory) + offset));
}

}  // namespace outeffhop::cuda
