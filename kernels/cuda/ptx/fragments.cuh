// How the lanes of a warp share the matrices of one tensor-core step, D (16 x 8) = A (16 x 16) B (16 x 8) + C (16 x 8): the
// layouts that the PTX ISA defines for mma.m16n8k16 with bf16 operands.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace outeffhop::cuda {

constexpr int kMmaM = 16, kMmaN = 8, kMmaK = 16;

// Lane 4 g + t, of g in [0, 8) and t in [0, 4), holds pairs of neighbouring bf16 elements, the first in the lower half.

/// A, 16 x 16: pair[0] is (g, 2t) and (g, 2t + 1); pair[1] the same eight rows below; pair[2] and pair[3] are pair[0] and
/// pair[1] eight columns to the right. load_matrix_x4 fills it, from rows 0 to 7 and 8 to 15 at column 0, then at column 8.
struct FragmentA {
  std::uint32_t pair[4];
};

/// B, 16 x 8: pair[0] is (2t, g) and (2t + 1, g); pair[1] the same eight rows below. load_matrix_x2 fills it from B's
/// columns where those are contiguous in memory, load_matrix_x2_transposed from its rows.
struct FragmentB {
  std::uint32_t pair[2];
};

/// C and D, 16 x 8, fp32: at[0] is (g, 2t), at[1] is (g, 2t + 1); at[2] and at[3] the same eight rows below.
struct FragmentC {
  float at[4];
};

/// Where at[i] of a lane's FragmentC is in the matrix.
__device__ __forceinline__ int accumulator_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
__device__ __forceinline__ int accumulator_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

}  // namespace outeffhop::cuda
