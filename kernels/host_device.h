// Marks functions that CUDA kernels call too.
#pragma once

#if defined(__CUDACC__)
#define OUTEFFHOP_HOST_DEVICE __host__ __device__
#else
#define OUTEFFHOP_HOST_DEVICE [[gnu::always_inline]]  // SIMD sources may leave no out-of-line copy behind
#endif
