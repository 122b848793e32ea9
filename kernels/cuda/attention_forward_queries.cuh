// What a warp of the tensor-core attention forward does: its queries in registers, against slices of keys and values in
// shared memory.
//
//   scores   raw products; times scale log2(e) they are powers of two
//   weights  2^(score scale log2(e) - base): a fused multiply-add and a power of two each. Rounded to bf16 they are the left
//            operand of the product with the values
//
// A row's base is the largest score of the first slice, but no less than log2 n; from then on it is raised to the largest
// score so far only where that exceeds it by more than 8. Sums are fp32 and bf16 is relative, so that weights of up to 2^8
// do as well as those of up to 1, and hardly any slice has sums to correct.
#pragma once

#include <cfloat>

#include "kernels/cuda/attention_tiles.cuh"

namespace outeffhop::cuda {

constexpr float kHeadroom = 8.0f;  ///< powers of two by which a score may exceed its row's base

/// Keys [begin, end) that a query sees.
struct alignas(8) Span {
  int begin, end;
};

__device__ __forceinline__ Span span_of(const AttentionProblem& p, int b, std::int64_t query) {
  const KeyRange keys = visible_keys(p, b, query);
  return {static_cast<int>(keys.begin), static_cast<int>(max(keys.begin, keys.end))};
}

/// What `queries` queries from `first` on see; beyond the last query, what that one sees. By as many threads or more.
template <int queries>
__device__ __forceinline__ void fill_spans(const SharedArray<Span>& spans, const AttentionProblem& p, int b, int first,
                                           int thread = static_cast<int>(threadIdx.x)) {
  if (thread < queries) spans[thread] = span_of(p, b, min(std::int64_t{first} + thread, p.Tq - 1));
}

/// For each step and, within it, each of `count` fragments in turn: load(fragments, step, i) and use(fragments, step, i),
/// each load one use ahead, as far as it takes to hide the way from shared memory.
template <int steps, int count, class Load, class Use>
__device__ __forceinline__ void load_ahead(Load load, Use use) {
  std::uint32_t fragments[2][4];
  load(fragments[0], 0, 0);
#pragma unroll
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int next = step * count + i + 1;
      if (next < steps * count) load(fragments[next % 2], next / count, next % count);
      use(fragments[(next + 1) % 2], step, i);
    }
  }
}

/// A warp's `blocks` times 16 queries, of which a lane has two rows of each 16, and what they have summed.
template <int D, int blocks, bool with_dropout>
class Queries {
 public:
  static constexpr int kRows = blocks * kMmaM;
  template <int columns>
  using Scores = FragmentC[blocks][columns];

  /// Of head h of sample b: queries `first` and on, which are rows `row` and on of a tile and of what each of them sees.
  template <int rows>
  __device__ __forceinline__ Queries(const AttentionProblem& p, int b, int h, int first, const Tile<D, rows>& tile, int row,
                                     const SharedArray<Span>& spans)
      : p_(p),
        sample_(b),
        philox_row_(static_cast<std::uint32_t>(h * p.Tq + first + lane() / 4)),
        spans_(spans),
        row_(row),
        // Not 0, by which a masked score of -infinity would become NaN.
        factor_(fmaxf(fabsf(p.scale) * kLog2E, FLT_MIN)) {
    if (first < p.Tq) {
      // Neither end falls from one query to the next.
      const Span top = spans[row], bottom = spans[row + kRows - 1];
      some_ = {top.begin, bottom.end};
      all_ = {bottom.begin, top.end};
    }
    const float n = softmax_constant(p);
#pragma unroll
    for (int block = 0; block < blocks; ++block) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        base_[block][r] = n > 0.0f ? log2f(n) : -FLT_MAX;
        sum_[block][r] = n > 0.0f && lane() % 4 == 0 ? 1.0f : 0.0f;
      }
#pragma unroll
      for (int step = 0; step < D / kMmaK; ++step) {
        std::uint32_t(&pairs)[4] = query_[block][step].pair;
        load_matrix_x4(pairs, four_matrices(tile, row + block * kMmaM, step * kMmaK, Second::below));
        // A negative scale's sign goes to the queries, so that the largest product is the largest score.
#pragma unroll
        for (int i = 0; i < 4; ++i) pairs[i] ^= p.scale < 0.0f ? 0x80008000u : 0u;
      }
    }
  }

  /// Attends to the keys from `key` on, which a tile has, `slice` of them at a time. All warps of the block call wait()
  /// after their first scores and before the first values are read.
  template <int slice, int rows, class Wait>
  __device__ __forceinline__ void attend(int key, const Tile<D, rows>& keys, const Tile<D, rows>& values, Wait wait) {
    static_assert(slice % 32 == 0);  // a Philox block has columns of as many
#pragma unroll 1
    for (int row = 0; row < rows; row += slice) {
      const bool see = some_.begin < key + row + slice && key + row < some_.end;
      Scores<slice / kMmaN> scores;
      if (see)
        score(scores, key + row, keys, row);
      else
        clear(scores);  // or they would be moved from one turn to the next
      if (row == 0) wait();
      if (see) add(scores, key + row, values, row);
    }
  }

  /// Writes the outputs of head h from query `first` on, through the rows of the tile that the queries came from.
  template <int rows>
  __device__ __forceinline__ void store(const Heads<bf16>& o, float* lse, int b, int h, int first,
                                        const Tile<D, rows>& tile) const {
    __syncwarp();  // other lanes have read what is written here
#pragma unroll
    for (int block = 0; block < blocks; ++block) {
      float factor[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float sum = sum_[block][r];
        sum += __shfl_xor_sync(kFullMask, sum, 1);
        sum += __shfl_xor_sync(kFullMask, sum, 2);
        const bool empty = sum == 0.0f;  // the ordinary softmax of no key
        factor[r] = empty ? 0.0f : p_.dropout.scale / sum;
        const std::int64_t i = first + block * kMmaM + lane() / 4 + 8 * r;
        if (lse && lane() % 4 == 0 && i < p_.Tq)
          lse[(b * p_.H + h) * p_.Tq + i] = empty ? 0.0f : (base_[block][r] + log2f(sum)) * kLn2;
      }
      store_rows(o, b, h, first + block * kMmaM, p_.Tq, output_[block], factor, tile, row_ + block * kMmaM);
    }
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }

  template <int columns>
  static __device__ __forceinline__ void clear(Scores<columns>& scores) {
#pragma unroll
    for (int block = 0; block < blocks; ++block)
#pragma unroll
      for (int column = 0; column < columns; ++column) scores[block][column] = {};
  }

  /// Scores of the keys from `key` on, which are rows `row` and on of a tile: those that a query does not see are -infinity.
  template <int columns, int rows>
  __device__ __forceinline__ void score(Scores<columns>& scores, int key, const Tile<D, rows>& keys, int row) {
    clear(scores);
    load_ahead<D / kMmaK, columns / 2>(
        [&](std::uint32_t(&pairs)[4], int step, int i) {
          load_matrix_x4(pairs, four_matrices(keys, row + i * 2 * kMmaN, step * kMmaK, Second::beside));
        },
        [&](const std::uint32_t(&pairs)[4], int step, int i) {
#pragma unroll
          for (int block = 0; block < blocks; ++block) {
            mma_16x8x16(scores[block][2 * i], query_[block][step], {{pairs[0], pairs[1]}});
            mma_16x8x16(scores[block][2 * i + 1], query_[block][step], {{pairs[2], pairs[3]}});
          }
        });
    if (key < all_.begin || all_.end < key + columns * kMmaN) mask(scores, key);
    bound(scores);
  }

  /// Adds the weighted values of the keys from `key` on.
  template <int columns, int rows>
  __device__ __forceinline__ void add(Scores<columns>& scores, int key, const Tile<D, rows>& values, int row) {
    weigh(scores, key);
    FragmentA weights[blocks];
    load_ahead<columns / 2, D / kMmaK>(
        [&](std::uint32_t(&pairs)[4], int step, int i) {
          load_matrix_x4_transposed(pairs, four_matrices(values, row + step * kMmaK, i * 2 * kMmaN, Second::below));
        },
        [&](const std::uint32_t(&pairs)[4], int step, int i) {
#pragma unroll
          for (int block = 0; block < blocks; ++block) {
            if (i == 0) weights[block] = left_operand(scores[block], step);
            mma_16x8x16(output_[block][2 * i], weights[block], {{pairs[0], pairs[1]}});
            mma_16x8x16(output_[block][2 * i + 1], weights[block], {{pairs[2], pairs[3]}});
          }
        });
  }

  template <int columns>
  __device__ __forceinline__ void mask(Scores<columns>& scores, int key) const {
#pragma unroll
    for (int block = 0; block < blocks; ++block) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const Span span = spans_[row_ + block * kMmaM + lane() / 4 + 8 * r];
        const int first = key + accumulator_column(lane(), 0), begin = span.begin - first, end = span.end - first;
#pragma unroll
        for (int column = 0; column < columns; ++column)
#pragma unroll
          for (int c = 0; c < 2; ++c)
            if (column * kMmaN + c < begin || column * kMmaN + c >= end) scores[block][column].at[2 * r + c] = -INFINITY;
      }
    }
  }

  /// Raises bases to where the weights of these scores need them.
  template <int columns>
  __device__ __forceinline__ void bound(const Scores<columns>& scores) {
    float largest[blocks][2];
    bool exceeds = false;
#pragma unroll
    for (int block = 0; block < blocks; ++block) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float& most = largest[block][r];
        most = scores[block][0].at[2 * r];
#pragma unroll
        for (int column = 0; column < columns; ++column)
          most = fmaxf(most, fmaxf(scores[block][column].at[2 * r], scores[block][column].at[2 * r + 1]));
        exceeds |= most * factor_ > base_[block][r] + headroom_;
      }
    }
    if (__any_sync(kFullMask, exceeds)) raise_bases(largest);
    headroom_ = kHeadroom;
  }

  __device__ __forceinline__ void raise_bases(const float (&largest)[blocks][2]) {
#pragma unroll
    for (int block = 0; block < blocks; ++block) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float most = largest[block][r];
        most = fmaxf(most, __shfl_xor_sync(kFullMask, most, 1));
        most = fmaxf(most, __shfl_xor_sync(kFullMask, most, 2)) * factor_;
        float& base = base_[block][r];
        const float raised = most > base + headroom_ ? most : base, correction = ptx::exp2_flushed(base - raised);
        base = raised;
        sum_[block][r] *= correction;
#pragma unroll
        for (int column = 0; column < D / kMmaN; ++column) {
          output_[block][column].at[2 * r] *= correction;
          output_[block][column].at[2 * r + 1] *= correction;
        }
      }
    }
  }

  /// Scores become weights, which are summed; then dropout makes some of them 0. What it keeps is multiplied by its scale in
  /// the end.
  template <int columns>
  __device__ __forceinline__ void weigh(Scores<columns>& scores, int key) {
#pragma unroll
    for (int block = 0; block < blocks; ++block) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        PhiloxBlock random{};
#pragma unroll
        for (int column = 0; column < columns; ++column) {
          // A Philox block has a lane's columns of four accumulators (the tiled mapping of kernels/random.h).
          if (with_dropout && column % 4 == 0)
            random = sample_block(p_.dropout.key, p_.dropout.sample_ids[sample_], philox_row_ + block * kMmaM + 8 * r,
                                  static_cast<std::uint32_t>((key + column * kMmaN) / 32 * 4 + lane() % 4));
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& weight = scores[block][column].at[2 * r + c];
            weight = ptx::exp2_flushed(weight * factor_ - base_[block][r]);
            sum_[block][r] += weight;
            if (with_dropout && ((random.w[column % 4] >> (16 * c)) & 0xffffu) < p_.dropout.threshold) weight = 0.0f;
          }
        }
      }
    }
  }

  const AttentionProblem& p_;
  int sample_;
  std::uint32_t philox_row_;
  SharedArray<Span> spans_;
  int row_;
  float factor_;
  float headroom_ = 0.0f;                   ///< by which scores may exceed bases
  Span some_{0, 0}, all_{0, 0};             ///< keys that at least one, and that every query sees
  float base_[blocks][2], sum_[blocks][2];  ///< bases in powers of two; sums of this lane's weights
  FragmentA query_[blocks][D / kMmaK];
  FragmentC output_[blocks][D / kMmaN] = {};
};

}  // namespace outeffhop::cuda
