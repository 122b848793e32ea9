// The tensor-core step of sm_80 and later.
#pragma once

#include "kernels/cuda/ptx/fragments.cuh"

namespace outeffhop::cuda {

/// d += a b, accumulated in fp32. All 32 lanes of the warp call it together.
__device__ __forceinline__ void mma_16x8x16(FragmentC& d, const FragmentA& a, const FragmentB& b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d.at[0]), "+f"(d.at[1]), "+f"(d.at[2]), "+f"(d.at[3])
      : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b.pair[0]), "r"(b.pair[1]));
}

}  // namespace outeffhop::cuda
