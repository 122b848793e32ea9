// Copies from global to shared memory that go on while the thread does something else (cp.async, sm_80 and later).
//
//   copy_async_16(tile.address(i), x + i);   // any number of them
//   commit_copies();                         // they are one group
//   wait_for_copies<0>();                    // until no more than 0 groups of this thread are on their way
//   __syncthreads();                         // only now do other threads see what was copied
//
// Each thread waits for its own copies, all of them before it returns. Until then nobody may touch their destination.
#pragma once

#include <cuda_runtime.h>

namespace outeffhop::cuda {

/// Copies `source_bytes` (0 to 16) bytes and fills up with zeros to 16. Both addresses are multiples of 16 bytes, also where
/// source_bytes is 0 and nothing is read. Goes past the L1 cache.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int source_bytes = 16) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
      "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
      : "memory");
}

/// As copy_async_16, for 8 and 4 bytes: what is aligned to no more. Goes through the L1 cache.
__device__ __forceinline__ void copy_async_8(void* shared, const void* global, int source_bytes = 8) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, int source_bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(global)), "r"(source_bytes)
               : "memory");
}

/// The copies this thread began since the last commit are a group, an empty one if there are none.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Returns when no more than the `groups` latest committed groups of this thread are on their way.
template <int groups>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

}  // namespace outeffhop::cuda
