// In place of kernels/cuda/ptx/async_copy.cuh.
#pragma once

#include "tests/simt/tensor_core.h"

namespace outeffhop::cuda {

inline void copy_async_16(void* shared, const void* global, int source_bytes = 16,
                          const simt::Where& where = simt::Where::current()) {
  simt::copy_async(shared, global, 16, source_bytes, where);
}
inline void copy_async_8(void* shared, const void* global, int source_bytes = 8,
                         const simt::Where& where = simt::Where::current()) {
  simt::copy_async(shared, global, 8, source_bytes, where);
}
inline void copy_async_4(void* shared, const void* global, int source_bytes = 4,
                         const simt::Where& where = simt::Where::current()) {
  simt::copy_async(shared, global, 4, source_bytes, where);
}

inline void commit_copies(const simt::Where& where = simt::Where::current()) { simt::commit_async_copies(where); }

template <int groups>
void wait_for_copies(const simt::Where& where = simt::Where::current()) {
  static_assert(groups >= 0);
  simt::wait_for_async_copies(groups, where);
}

}  // namespace outeffhop::cuda
