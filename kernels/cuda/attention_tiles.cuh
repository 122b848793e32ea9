// What the tensor-core attention kernels share: tiles of 64 rows of one head in shared memory, and their products.
//
// A block of four warps works on 64 rows, 16 a warp, and walks through tiles of 64 rows of the other side: queries against
// keys, or keys against queries. What it walks through is copied while the tile before is worked on. Rows of shared memory
// have 16 bytes of padding, so that the eight rows that a matrix load takes lie in different banks.
#pragma once

#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/bf16_pair.cuh"
#include "kernels/cuda/ptx/exp2.cuh"
#include "kernels/cuda/ptx/load_matrix.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/words.cuh"

namespace outeffhop::cuda {

constexpr int kTileRows = 64;
constexpr int kTileThreads = kTileRows / kMmaM * kWarp;
constexpr int kTileColumns = kTileRows / kMmaN;  ///< accumulators of a warp's 16 rows against a tile
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

/// Tiles lie one after the other from the beginning of the block's shared memory.
template <int D>
struct TileShape {
  static constexpr int kRow = D + 8;  ///< elements from one row to the next
  static constexpr int kElements = kTileRows * kRow;
  static constexpr int kBytes = kElements * static_cast<int>(sizeof(bf16));
};

template <int D>
__device__ __forceinline__ SharedArray<bf16> shared_tile(int number) {
  return shared_array<bf16>(number * TileShape<D>::kBytes, TileShape<D>::kElements);
}

/// Begins to copy rows [first, first + 64) of one head; those outside of [begin, end), which is not empty, become 0.
template <int D>
__device__ __forceinline__ void copy_tile(const SharedArray<bf16>& to, const Heads<const bf16>& from, std::int64_t b,
                                          std::int64_t h, std::int64_t first, std::int64_t begin, std::int64_t end) {
  constexpr int kChunks = D / kVector;
  for (int number = static_cast<int>(threadIdx.x); number < kTileRows * kChunks; number += kTileThreads) {
    const int row = number / kChunks, channel = number % kChunks * kVector;
    const bool inside = begin <= first + row && first + row < end;
    copy_async_16(to.address(row * TileShape<D>::kRow + channel), from.at(b, inside ? first + row : begin, h) + channel,
                  inside ? 16 : 0);
  }
}

/// The address that this lane gives to load four 8 x 8 matrices from `row` and `column` on. The second lies below the first,
/// or beside it.
enum class Second { below, beside };
template <int D>
__device__ __forceinline__ const bf16* four_matrices(const SharedArray<bf16>& tile, int row, int column, Second second) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, matrix = lane / 8;
  const int below = second == Second::below ? matrix % 2 : matrix / 2;
  const int beside = second == Second::below ? matrix / 2 : matrix % 2;
  return tile.address((row + 8 * below + lane % 8) * TileShape<D>::kRow + column + 8 * beside);
}

/// out (16 x 64) = a b^T: a is 16 rows of a tile from `row` on, b a tile.
template <int D>
__device__ __forceinline__ void multiply_rows(FragmentC (&out)[kTileColumns], const SharedArray<bf16>& a, int row,
                                              const SharedArray<bf16>& b) {
#pragma unroll
  for (int column = 0; column < kTileColumns; ++column) out[column] = {};
#pragma unroll 1  // unrolled, loads are moved far ahead and registers run out
  for (int step = 0; step < D / kMmaK; ++step) {
    FragmentA left;
    load_matrix_x4(left.pair, four_matrices<D>(a, row, step * kMmaK, Second::below));
#pragma unroll
    for (int column = 0; column < kTileColumns; column += 2) {
      std::uint32_t pairs[4];
      load_matrix_x4(pairs, four_matrices<D>(b, column * kMmaN, step * kMmaK, Second::beside));
      mma_16x8x16(out[column], left, {{pairs[0], pairs[1]}});
      mma_16x8x16(out[column + 1], left, {{pairs[2], pairs[3]}});
    }
  }
}

struct AsItIs {
  __device__ __forceinline__ float operator()(float weight) const { return weight; }
};
/// What is below 0 counts as 0.
struct Positive {
  __device__ __forceinline__ float operator()(float weight) const { return fmaxf(weight, 0.0f); }
};

/// out (16 x D) += weights (16 x 64, rounded to bf16) times a tile (64 x D). Accumulators lie in registers as the left
/// operand does.
template <int D, class Take = AsItIs>
__device__ __forceinline__ void add_weighted_rows(FragmentC (&out)[D / kMmaN], const FragmentC (&weights)[kTileColumns],
                                                  const SharedArray<bf16>& tile, Take take = {}) {
#pragma unroll
  for (int step = 0; step < kTileRows / kMmaK; ++step) {
    const FragmentC &left = weights[2 * step], &right = weights[2 * step + 1];
    const auto pair = [&](const FragmentC& from, int i) { return ptx::bf16_pair(take(from.at[i]), take(from.at[i + 1])); };
    const FragmentA a{{pair(left, 0), pair(left, 2), pair(right, 0), pair(right, 2)}};
#pragma unroll
    for (int column = 0; column < D / kMmaN; column += 2) {
      std::uint32_t pairs[4];
      load_matrix_x4_transposed(pairs, four_matrices<D>(tile, step * kMmaK, column * kMmaN, Second::below));
      mma_16x8x16(out[column], a, {{pairs[0], pairs[1]}});
      mma_16x8x16(out[column + 1], a, {{pairs[2], pairs[3]}});
    }
  }
}

/// Stores a warp's 16 rows of 64, `first` + 16 warp and on, as far as they are below `end`; row g of a lane times factor[0],
/// row g + 8 times factor[1]. Through the warp's own rows of a tile, which nobody else uses by now, so that 16 bytes are
/// stored at a time.
template <int D>
__device__ __forceinline__ void store_rows(const Heads<bf16>& to, std::int64_t b, std::int64_t h, std::int64_t first,
                                           std::int64_t end, const FragmentC (&out)[D / kMmaN], const float (&factor)[2],
                                           int tile) {
  constexpr int kRow = TileShape<D>::kRow, kChunks = D / kVector;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp_row = static_cast<int>(threadIdx.x) / kWarp * kMmaM;
  const auto pairs = shared_array<std::uint32_t>(tile * TileShape<D>::kBytes, TileShape<D>::kElements / 2);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp_row + lane / 4 + 8 * r;
#pragma unroll
    for (int column = 0; column < D / kMmaN; ++column)
      pairs[(row * kRow + column * kMmaN) / 2 + lane % 4] =
          ptx::bf16_pair(out[column].at[2 * r] * factor[r], out[column].at[2 * r + 1] * factor[r]);
  }
  __syncwarp();
  const auto vectors = shared_array<Words>(tile * TileShape<D>::kBytes, TileShape<D>::kElements / kVector);
  for (int number = lane; number < kMmaM * kChunks; number += kWarp) {
    const int row = warp_row + number / kChunks, channel = number % kChunks * kVector;
    if (first + row >= end) continue;
    const Words words = vectors[(row * kRow + channel) / kVector];
    *reinterpret_cast<Words*>(to.at(b, first + row, h) + channel) = words;
  }
}

}  // namespace outeffhop::cuda
