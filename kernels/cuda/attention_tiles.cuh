// What the tensor-core attention kernels share: rows of one head in shared memory, and their products.
//
// A tile is rows of D channels, one after the other without padding. Within a row, chunks of 16 bytes are permuted by the
// row's number, so that the eight rows of which a matrix load takes one chunk each lie in different banks, and so do the
// chunks that eight neighbouring threads copy. A warp's products have 16 rows on the left.
#pragma once

#include <numeric>

#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/bf16_pair.cuh"
#include "kernels/cuda/ptx/exp2.cuh"
#include "kernels/cuda/ptx/load_matrix.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/words.cuh"

namespace outeffhop::cuda {

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

/// Where chunks of 16 bytes lie in a tile of D channels a row. The 32 banks hold eight chunks. Rows of 2^k chunks times an
/// odd number repeat their banks every 8 / 2^k rows (every row, where k is 3 or more): from one repetition to the next, the
/// chunks within each 2^k (8 at most) trade places.
template <int D>
struct Swizzle {
  static constexpr int kBanks = 8, kChunks = D / kVector, kGroup = std::gcd(kChunks, kBanks);

  static constexpr __host__ __device__ int place(int row, int chunk) {
    return row * kChunks + (chunk ^ (row & (kBanks - 1)) * kGroup / kBanks);
  }

  /// Whether eight places are in eight different banks.
  template <class Place>
  static constexpr bool apart(Place place_of) {
    int seen = 0;
    for (int i = 0; i < kBanks; ++i) seen |= 1 << place_of(i) % kBanks;
    return seen == (1 << kBanks) - 1;
  }
  static constexpr bool free_of_conflicts() {
    for (int row = 0; row < 2 * kBanks; row += kBanks)
      for (int chunk = 0; chunk < kChunks; ++chunk)
        if (!apart([&](int i) { return place(row + i, chunk); })) return false;
    for (int first = 0; first < kBanks * kChunks; first += kBanks)
      if (!apart([&](int i) { return place((first + i) / kChunks, (first + i) % kChunks); })) return false;
    return true;
  }
};

/// `rows` rows of D channels, `offset` bytes into the block's shared memory.
template <int D, int rows>
class Tile {
 public:
  static constexpr int kRows = rows, kElements = rows * D, kBytes = kElements * static_cast<int>(sizeof(bf16));
  static_assert(Swizzle<D>::free_of_conflicts());

  __device__ __forceinline__ explicit Tile(int offset) : offset_(offset) {}

  /// Of the eight elements of a row from `channel` on, a multiple of eight.
  __device__ __forceinline__ bf16* address(int row, int channel) const { return address_in(0, row, channel); }
  /// Of row `row` of those from `first` on, a multiple of eight: what a thread's own row and channel give is the same for
  /// every `first`.
  __device__ __forceinline__ bf16* address_in(int first, int row, int channel) const {
    return shared_array<bf16>(offset_, kElements).address(first * D + Swizzle<D>::place(row, channel / kVector) * kVector);
  }
  /// Elements `channel` and `channel` + 1 of a row.
  __device__ __forceinline__ void put_pair(int row, int channel, std::uint32_t pair) const {
    shared_array<std::uint32_t>(
        offset_, kElements / 2)[Swizzle<D>::place(row, channel / kVector) * (kVector / 2) + channel % kVector / 2] = pair;
  }
  __device__ __forceinline__ std::uint32_t pair(int row, int channel) const {
    return shared_array<std::uint32_t>(
        offset_, kElements / 2)[Swizzle<D>::place(row, channel / kVector) * (kVector / 2) + channel % kVector / 2];
  }
  __device__ __forceinline__ void put_words(int row, int channel, const Words& words) const {
    shared_array<Words>(offset_, kElements / kVector)[Swizzle<D>::place(row, channel / kVector)] = words;
  }
  __device__ __forceinline__ Words words(int row, int channel) const {
    return shared_array<Words>(offset_, kElements / kVector)[Swizzle<D>::place(row, channel / kVector)];
  }

 private:
  int offset_;
};

/// Begins to copy rows [first, first + rows) of one head, by `threads` threads; those outside of [begin, end), which is not
/// empty, become 0. `thread` is one's number among them.
template <int threads, int D, int rows>
__device__ __forceinline__ void copy_tile(const Tile<D, rows>& to, const Heads<const bf16>& from, std::int64_t b,
                                          std::int64_t h, std::int64_t first, std::int64_t begin, std::int64_t end,
                                          int thread = static_cast<int>(threadIdx.x)) {
  constexpr int kChunks = D / kVector, kRowsAtOnce = threads / kChunks;
  // Unrolled, where each row's place is the same distance from the last: otherwise all their addresses are kept in
  // registers.
  constexpr int kUnrolled = kRowsAtOnce % Swizzle<D>::kBanks == 0 ? rows / kRowsAtOnce : 1;
  if (thread >= kRowsAtOnce * kChunks) return;
  const int low = static_cast<int>(begin - first), high = static_cast<int>(end - first);
  const int first_row = thread / kChunks, channel = thread % kChunks * kVector;
  const bf16* source = from.at(b, first + first_row, h) + channel;
  if (low <= 0 && rows <= high) {
#pragma unroll kUnrolled
    for (int row = 0; row < rows; row += kRowsAtOnce, source += kRowsAtOnce * from.row_stride)
      if (rows % kRowsAtOnce == 0 || first_row + row < rows)
        copy_async_16(kUnrolled > 1 ? to.address_in(row, first_row, channel) : to.address(first_row + row, channel), source);
    return;
  }
#pragma unroll 1
  for (int row = first_row; row < rows; row += kRowsAtOnce, source += kRowsAtOnce * from.row_stride) {
    const bool inside = low <= row && row < high;
    copy_async_16(to.address(row, channel), inside ? source : from.data, inside ? 16 : 0);
  }
}

/// The address that this lane gives to load four 8 x 8 matrices from `row` and `column` on, multiples of eight. The second
/// lies below the first, or beside it.
enum class Second { below, beside };
template <int D, int rows>
__device__ __forceinline__ const bf16* four_matrices(const Tile<D, rows>& tile, int row, int column, Second second) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, matrix = lane / 8;
  const int below = second == Second::below ? matrix % 2 : matrix / 2;
  const int beside = second == Second::below ? matrix / 2 : matrix % 2;
  return tile.address_in(row, 8 * below + lane % 8, column + 8 * beside);
}

struct AsItIs {
  __device__ __forceinline__ float operator()(float weight) const { return weight; }
};
/// What is below 0 counts as 0.
struct Positive {
  __device__ __forceinline__ float operator()(float weight) const { return fmaxf(weight, 0.0f); }
};

/// Accumulators 2 `step` and 2 `step` + 1 of a row, rounded to bf16, as a left operand: they lie in registers as it does.
template <int columns, class Take = AsItIs>
__device__ __forceinline__ FragmentA left_operand(const FragmentC (&weights)[columns], int step, Take take = {}) {
  const FragmentC &left = weights[2 * step], &right = weights[2 * step + 1];
  const auto pair = [&](const FragmentC& from, int i) { return ptx::bf16_pair(take(from.at[i]), take(from.at[i + 1])); };
  return {{pair(left, 0), pair(left, 2), pair(right, 0), pair(right, 2)}};
}

/// Stores 16 rows of one head from `first` on, as far as they are below `end`; row g of a lane times factor[0], row g + 8
/// times factor[1]. Through 16 rows of a tile from `row` on, which only this warp uses by now, so that 16 bytes are stored
/// at a time.
template <int D, int rows>
__device__ __forceinline__ void store_rows(const Heads<bf16>& to, std::int64_t b, std::int64_t h, std::int64_t first,
                                           std::int64_t end, const FragmentC (&out)[D / kMmaN], const float (&factor)[2],
                                           const Tile<D, rows>& tile, int row) {
  constexpr int kChunks = D / kVector;
  // From another lane, though it is this one's: a loop around this would keep addresses that depend on it in registers.
  const int lane = __shfl_sync(kFullMask, static_cast<int>(threadIdx.x) % kWarp, static_cast<int>(threadIdx.x) % kWarp);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int column = 0; column < D / kMmaN; ++column)
      tile.put_pair(row + lane / 4 + 8 * r, column * kMmaN + accumulator_column(lane, 0),
                    ptx::bf16_pair(out[column].at[2 * r] * factor[r], out[column].at[2 * r + 1] * factor[r]));
  }
  __syncwarp();
#pragma unroll 1
  for (int number = lane; number < kMmaM * kChunks; number += kWarp) {
    const int i = number / kChunks, channel = number % kChunks * kVector;
    if (first + i < end) *reinterpret_cast<Words*>(to.at(b, first + i, h) + channel) = tile.words(row + i, channel);
  }
}

}  // namespace outeffhop::cuda
