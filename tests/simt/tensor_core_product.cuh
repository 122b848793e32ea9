// A small matrix product as real ones are built: tiles come by asynchronous copies, double-buffered, from shared memory by
// ldmatrix, and are multiplied on tensor cores. With a planted bug it shows what the executor sees.
#pragma once

#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/load_matrix.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/shared_memory.cuh"

namespace outeffhop::cuda {

enum class PlantedBug {
  none,
  no_wait,
  waits_for_older_group,
  no_barrier_after_wait,
  no_barrier_before_next_copy,
  no_commit
};

constexpr int kProductSize = 64, kProductThreads = 128;              // four warps of 16 rows each
constexpr int kProductTile = kProductSize * kMmaK;                   // elements of A's and of B's tile
constexpr int kProductShared = 2 * 2 * kProductTile * sizeof(bf16);  // two tiles, two buffers

/// Columns [16 step, 16 step + 16) of a and the rows of b of the same numbers set out for the shared memory of `buffer`.
__device__ __forceinline__ void copy_tiles(const bf16* a, const bf16* b, int step, SharedArray<bf16> a_tile,
                                           SharedArray<bf16> b_tile) {
  const int thread = static_cast<int>(threadIdx.x);
  const int a_row = thread / 2, a_column = thread % 2 * 8, b_row = thread / 8, b_column = thread % 8 * 8;
  copy_async_16(a_tile.address(a_row * kMmaK + a_column), a + a_row * kProductSize + step * kMmaK + a_column);
  copy_async_16(b_tile.address(b_row * kProductSize + b_column), b + (step * kMmaK + b_row) * kProductSize + b_column);
}

template <PlantedBug bug>
__global__ void __launch_bounds__(kProductThreads) product_kernel(const bf16* a,  // (64, 64)
                                                                  const bf16* b,  // (64, 64)
                                                                  float* c) {     // (64, 64)
  constexpr int kTileBytes = kProductTile * static_cast<int>(sizeof(bf16)), kSteps = kProductSize / kMmaK;
  const auto a_tile = [](int step) { return shared_array<bf16>(step % 2 * kTileBytes, kProductTile); };
  const auto b_tile = [](int step) { return shared_array<bf16>((2 + step % 2) * kTileBytes, kProductTile); };
  const int lane = static_cast<int>(threadIdx.x) % 32, first_row = static_cast<int>(threadIdx.x) / 32 * kMmaM;

  FragmentC sum[kProductSize / kMmaN] = {};
  copy_tiles(a, b, 0, a_tile(0), b_tile(0));
  commit_copies();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (step + 1 < kSteps) copy_tiles(a, b, step + 1, a_tile(step + 1), b_tile(step + 1));
    if constexpr (bug != PlantedBug::no_commit) commit_copies();
    if constexpr (bug == PlantedBug::waits_for_older_group) {
      wait_for_copies<2>();
    } else if constexpr (bug != PlantedBug::no_wait) {
      wait_for_copies<1>();
    }
    if constexpr (bug != PlantedBug::no_barrier_after_wait) __syncthreads();
    FragmentA left;
    load_matrix_x4(left.pair, a_tile(step).address((first_row + lane % 16) * kMmaK + lane / 16 * 8));
#pragma unroll
    for (int tile = 0; tile < kProductSize / kMmaN; ++tile) {
      FragmentB right;
      load_matrix_x2_transposed(right.pair, b_tile(step).address(lane % 16 * kProductSize + tile * kMmaN));
      mma_16x8x16(sum[tile], left, right);
    }
    if constexpr (bug != PlantedBug::no_barrier_before_next_copy) __syncthreads();
  }
#pragma unroll
  for (int tile = 0; tile < kProductSize / kMmaN; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      c[(first_row + accumulator_row(lane, i)) * kProductSize + tile * kMmaN + accumulator_column(lane, i)] =
          sum[tile].at[i];
}

}  // namespace outeffhop::cuda
