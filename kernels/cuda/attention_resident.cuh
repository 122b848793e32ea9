// What the resident attention kernel is made of: rows of one head of a short sequence with offsets of 32 bits, products that
// have several times 16 rows on the left, and which keys queries see. All of it is made to take few registers.
#pragma once

#include "kernels/cuda/attention_tiles.cuh"

namespace outeffhop::cuda {

constexpr int kLongest = 512;              ///< queries or keys
constexpr std::int64_t kWidest = 1 << 21;  ///< elements from one row to the next: offsets within a head fit 32 bits
constexpr int kSlice = 32;                 ///< queries that a warp works on at a time

/// One head's rows.
template <class T>
struct Head {
  T* data;
  int row_stride;

  __device__ Head(const Heads<T>& all, std::int64_t b, std::int64_t h)
      : data(all.at(b, 0, h)), row_stride(static_cast<int>(all.row_stride)) {}
  __device__ T* at(int row, int channel) const { return data + (row * row_stride + channel); }
};

/// Begins to copy rows [first, first + rows); those from `end` on become 0.
template <int threads, int D, int rows>
__device__ __forceinline__ void copy_rows(const Tile<D, rows>& to, const Head<const bf16>& from, int first, int end) {
  constexpr int kChunks = D / kVector, kAtOnce = threads / kChunks;
  const int thread_row = static_cast<int>(threadIdx.x / kChunks),
            channel = static_cast<int>(threadIdx.x % kChunks) * kVector;
#pragma unroll
  for (int step = 0; step < rows / kAtOnce; ++step) {
    const int row = step * kAtOnce + thread_row;
    const bool inside = first + row < end;
    copy_async_16(to.address(row, channel), from.at(inside ? first + row : 0, channel), inside ? 16 : 0);
  }
}

/// As four_matrices, from a row that is a multiple of eight and a column that is one of sixteen. What depends on the lane is
/// the same for all tiles of as many columns, and permuting the chunks of a row is one instruction.
template <int D, int rows>
__device__ __forceinline__ const bf16* matrices(const Tile<D, rows>& tile, int row, int column, Second second) {
  static_assert((D & (D - 1)) == 0);
  const int lane = static_cast<int>(threadIdx.x % kWarp), matrix = lane / 8;
  const int below = second == Second::below ? matrix % 2 : matrix / 2;
  const int beside = second == Second::below ? matrix / 2 : matrix % 2;
  return tile.address_in(row, 0, 0) + (Swizzle<D>::place(8 * below + lane % 8, beside) * kVector ^ column);
}

/// out (16 m x 8 n) = a b^T, of rows of two tiles.
template <int m, int n, int D, int a_rows, int b_rows>
__device__ __forceinline__ void multiply(FragmentC (&out)[m][n], const Tile<D, a_rows>& a, int a_row,
                                         const Tile<D, b_rows>& b, int b_row) {
#pragma unroll
  for (int i = 0; i < m * n; ++i) out[i / n][i % n] = {};
#pragma unroll 2  // the loads of two steps are under way together; with those of four, registers run out
  for (int step = 0; step < D / kMmaK; ++step) {
    std::uint32_t pairs[n / 2][4];
#pragma unroll
    for (int j = 0; j < n / 2; ++j) load_matrix_x4(pairs[j], matrices(b, b_row + j * kMmaK, step * kMmaK, Second::beside));
#pragma unroll
    for (int i = 0; i < m; ++i) {
      FragmentA left;
      load_matrix_x4(left.pair, matrices(a, a_row + i * kMmaM, step * kMmaK, Second::below));
#pragma unroll
      for (int j = 0; j < n / 2; ++j) {
        mma_16x8x16(out[i][2 * j], left, {{pairs[j][0], pairs[j][1]}});
        mma_16x8x16(out[i][2 * j + 1], left, {{pairs[j][2], pairs[j][3]}});
      }
    }
  }
}

/// As left_operand, with 0 in place of what is below 0.
template <int columns>
__device__ __forceinline__ FragmentA kept_operand(const FragmentC (&weights)[columns], int step) {
  const FragmentC &left = weights[2 * step], &right = weights[2 * step + 1];
  const auto pair = [](const FragmentC& from, int i) { return ptx::bf16_pair_positive(from.at[i], from.at[i + 1]); };
  return {{pair(left, 0), pair(left, 2), pair(right, 0), pair(right, 2)}};
}

/// out (16 m x 8 n) += a times 16 rows of a tile, from `column` on.
template <int m, int n, class B>
__device__ __forceinline__ void add_product(FragmentC (&out)[m][n], const FragmentA (&a)[m], const B& b, int row,
                                            int column) {
#pragma unroll
  for (int j = 0; j < n; j += 2) {
    std::uint32_t pairs[4];
    load_matrix_x4_transposed(pairs, matrices(b, row, column + j * kMmaN, Second::below));
#pragma unroll
    for (int i = 0; i < m; ++i) {
      mma_16x8x16(out[i][j], a[i], {{pairs[0], pairs[1]}});
      mma_16x8x16(out[i][j + 1], a[i], {{pairs[2], pairs[3]}});
    }
  }
}

/// Stores 16 m rows of 8 n channels, as far as they are below `end`, times a factor. Through the same rows and channels of a
/// tile, which only this warp uses by now, so that 16 bytes are stored at a time.
template <int m, int n, int D, int rows>
__device__ __forceinline__ void store(const Head<bf16>& to, int first, int end, const FragmentC (&out)[m][n], float factor,
                                      const Tile<D, rows>& tile, int row, int channel) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
#pragma unroll
  for (int i = 0; i < m; ++i) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int j = 0; j < n; ++j)
        tile.put_pair(row + i * kMmaM + 8 * r + lane / 4, channel + j * kMmaN + lane % 4 * 2,
                      ptx::bf16_pair(out[i][j].at[2 * r] * factor, out[i][j].at[2 * r + 1] * factor));
    }
  }
  __syncwarp();
  constexpr int kAtOnce = kWarp / n;  // rows
  const int lane_row = static_cast<int>(threadIdx.x % kWarp / n),
            lane_channel = channel + static_cast<int>(threadIdx.x % n) * kVector;
#pragma unroll
  for (int step = 0; step < m * kMmaM / kAtOnce; ++step) {
    const int at = step * kAtOnce + lane_row;
    if (first + at < end) *reinterpret_cast<Words*>(to.at(first + at, lane_channel)) = tile.words(row + at, lane_channel);
  }
  __syncwarp();
}

/// visible_keys of one sample, in fewer registers.
struct Visible {
  const int2* ranges;  ///< (Tq) or null
  int length, limit;   ///< query i sees no key from i + limit on

  __device__ Visible(const AttentionProblem& p, std::int64_t b)
      : ranges(p.key_ranges ? reinterpret_cast<const int2*>(p.key_ranges) + b * p.Tq : nullptr),
        length(p.key_lengths ? min(p.key_lengths[b], static_cast<int>(p.Tk)) : static_cast<int>(p.Tk)),
        limit(kLongest) {
    if (p.causal) limit = static_cast<int>(max(std::int64_t{-kLongest}, min(p.causal_offset + 1, std::int64_t{kLongest})));
  }
  /// Begin and end.
  __device__ int2 operator()(int i) const {
    int2 keys = ranges ? ranges[i] : int2{0, length};
    keys.y = min(keys.y, min(length, i + limit));
    return keys;
  }
};

/// Of a slice of queries: the keys [begin, end) that any of them sees, and those that all of them see.
struct Span {
  int begin, end, whole_begin, whole_end;

  __device__ bool touches(int first, int count) const { return begin < end && first < end && first + count > begin; }
  __device__ bool covers(int first, int count) const { return whole_begin <= first && first + count <= whole_end; }
  __device__ bool goes_beyond(int key) const { return begin < end && end > key; }
  /// Whether a block whose first key is `first` has to see to the slice's d_q; the first block, where no key is seen.
  __device__ bool is_for(int first, int count) const { return begin < end ? touches(first, count) : first == 0; }
};

/// Of slice number `slice`; begin >= end where no key is seen.
__device__ __forceinline__ Span span_of(const Visible& visible, int slice, int Tq) {
  const int first = slice * kSlice;
  if (first >= Tq) return {0, 0, 0, 0};
  const int2 of_first = visible(first), of_last = visible(min(first + kSlice, Tq) - 1);
  return {of_first.x, of_last.y, of_last.x, of_first.y};
}

}  // namespace outeffhop::cuda
