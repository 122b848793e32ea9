// AttentionBackward in bf16 on tensor cores, deterministic without atomics: one kernel sums d_q, a block having 128 queries
// and walking through the keys they see, 32 at a time; another sums d_k and d_v, a block having 64 keys, or 128 of narrow
// heads, and walking through the queries that see them. Both compute the probabilities anew from the scores and LSE, so that
// there are seven products, where a kernel that adds d_q by atomics makes five.
//
// The first also leaves what the second needs of each query: LSE and D_i = do_i . o_i. The second works on the transposed
// matrix: a warp's accumulators have keys for rows and queries for columns, so that p and ds are again left operands as they
// lie in registers. A gradient that the batch shares is summed by one block over the batch.
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx/opaque.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kWalked = 32, kColumns = kWalked / kMmaN;  ///< rows walked through at a time, and accumulators against them

// A warp has one or two groups of 16 rows. What it loads of the other side serves all of its groups, and these loads take as
// long as the tensor-core steps: two, where the sums fit into registers.
constexpr int kQueryGroups = 2;
template <int D>
constexpr int kKeyGroups = D <= 32 ? 2 : 1;

/// Shared memory of a block: its own two tiles, then two that it walks through, twice; then of each query walked through,
/// twice, its Statistics and the keys it sees.
struct Statistics {
  float lse;         ///< in powers of two
  float output_dot;  ///< D_i
};
constexpr int kStatisticsBytes = kWalked * static_cast<int>(sizeof(Statistics));
constexpr int kQueryBytes = kStatisticsBytes + kWalked * static_cast<int>(sizeof(int2));
/// Of the queries that are a block's own, after the tiles.
struct alignas(16) Query {
  float lse, output_dot;
  int2 keys;  ///< it sees [x, y)
};

template <int D, int kGroups>
struct Layout {
  static constexpr int kRows = kWarps * kMmaM * kGroups;
  using Own = Tile<D, kRows>;
  using Walked = Tile<D, kWalked>;
  static constexpr int kTileBytes = 2 * Own::kBytes + 4 * Walked::kBytes;

  __device__ static Own own(int which) { return Own(which * Own::kBytes); }
  __device__ static Walked walked(int which, int buffer) {
    return Walked(2 * Own::kBytes + (2 * buffer + which) * Walked::kBytes);
  }
  __device__ static SharedArray<Statistics> statistics(int buffer) {
    return shared_array<Statistics>(kTileBytes + buffer * kQueryBytes, kWalked);
  }
  __device__ static SharedArray<Query> block_queries() { return shared_array<Query>(kTileBytes, kRows); }
  /// The statistics of two queries at a time: LSE, D, LSE, D.
  __device__ static SharedArray<float4> pairs(int buffer) {
    return shared_array<float4>(kTileBytes + buffer * kQueryBytes, kWalked / 2);
  }
  /// Their key ranges, whole and by their bounds.
  __device__ static SharedArray<int2> ranges(int buffer) {
    return shared_array<int2>(kTileBytes + buffer * kQueryBytes + kStatisticsBytes, kWalked);
  }
  __device__ static SharedArray<int> bounds(int buffer) {
    return shared_array<int>(kTileBytes + buffer * kQueryBytes + kStatisticsBytes, 2 * kWalked);
  }
};

/// One head of one sample: its rows are `stride` elements apart.
struct Head {
  const bf16* data;
  std::int64_t stride;
  __device__ __forceinline__ Head(const Heads<const bf16>& heads, int b, int h)
      : data(heads.at(b, 0, h)), stride(heads.row_stride) {}
};

/// Begins to copy rows `first` and on to a tile; those outside of [begin, end) become 0.
template <int D, int rows>
__device__ __forceinline__ void copy_rows(const Tile<D, rows>& to, const Head& from, int first, int begin, int end) {
  constexpr int kChunks = D / kVector, kRowsAtOnce = kThreads / kChunks;
  const unsigned thread = ptx::opaque(threadIdx.x);
  const int row = static_cast<int>(thread / kChunks), channel = static_cast<int>(thread % kChunks) * kVector;
  if (row >= kRowsAtOnce) return;
  const bf16* at = from.data + first * from.stride + (row * from.stride + channel);
#pragma unroll
  for (int step = 0; step < rows; step += kRowsAtOnce) {
    if (step + kRowsAtOnce > rows && row >= rows - step) break;
    const int i = first + row + step;
    // Eight rows further, rows lie as they do here.
    bf16* place = kRowsAtOnce % 8 == 0 ? to.address_in(step, row, channel) : to.address(row + step, channel);
    copy_async_16(place, at + step * from.stride, begin <= i && i < end ? 16 : 0);
  }
}

template <int kGroups>
using Scores = FragmentC[kGroups][kColumns];

/// Calls f(group, column, i) for each of a lane's accumulators.
template <int kGroups, class Function>
__device__ __forceinline__ void for_each_score(Function&& f) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group)
#pragma unroll
    for (int column = 0; column < kColumns; ++column)
#pragma unroll
      for (int i = 0; i < 4; ++i) f(group, column, i);
}

/// out = a b^T: a is the warp's rows of a tile, from `row` on.
template <int kGroups, int D, int rows>
__device__ __forceinline__ void multiply(Scores<kGroups>& out, const Tile<D, rows>& a, int row, const Tile<D, kWalked>& b) {
  for_each_score<kGroups>([&](int group, int column, int i) { out[group][column].at[i] = 0.0f; });
#pragma unroll 1  // unrolled, loads are moved far ahead and registers run out
  for (int step = 0; step < D / kMmaK; ++step) {
    FragmentA left[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group)
      load_matrix_x4(left[group].pair, four_matrices(a, row + group * kMmaM, step * kMmaK, Second::below));
#pragma unroll
    for (int column = 0; column < kColumns; column += 2) {
      std::uint32_t pairs[4];
      load_matrix_x4(pairs, four_matrices(b, column * kMmaN, step * kMmaK, Second::beside));
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        mma_16x8x16(out[group][column], left[group], {{pairs[0], pairs[1]}});
        mma_16x8x16(out[group][column + 1], left[group], {{pairs[2], pairs[3]}});
      }
    }
  }
}

/// out += weights, rounded to bf16, times a tile.
template <int kGroups, int D, class Take = AsItIs>
__device__ __forceinline__ void add_weighted(FragmentC (&out)[kGroups][D / kMmaN], const Scores<kGroups>& weights,
                                             const Tile<D, kWalked>& tile, Take take = {}) {
#pragma unroll
  for (int step = 0; step < kWalked / kMmaK; ++step) {
    FragmentA left[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) left[group] = left_operand(weights[group], step, take);
#pragma unroll
    for (int column = 0; column < D / kMmaN; column += 2) {
      std::uint32_t pairs[4];
      load_matrix_x4_transposed(pairs, four_matrices(tile, step * kMmaK, column * kMmaN, Second::below));
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        mma_16x8x16(out[group][column], left[group], {{pairs[0], pairs[1]}});
        mma_16x8x16(out[group][column + 1], left[group], {{pairs[2], pairs[3]}});
      }
    }
  }
}

/// Writes the warp's rows times `factor`, or adds them to what is there: rows `first` and on, as far as they are below
/// `end`. Through the warp's own rows of a tile, from `row` on.
template <int kGroups, int D, int rows>
__device__ __forceinline__ void store(const Heads<bf16>& to, std::int64_t b, std::int64_t h, std::int64_t first,
                                      std::int64_t end, FragmentC (&out)[kGroups][D / kMmaN], float factor, bool accumulate,
                                      const Tile<D, rows>& tile, int row) {
  constexpr int kChunks = D / kVector;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (accumulate) {
    __syncwarp();  // the warp has loaded its rows for the last time
    for (int number = lane; number < kGroups * kMmaM * kChunks; number += kWarp) {
      const int i = number / kChunks, channel = number % kChunks * kVector;
      if (first + i < end)
        tile.put_words(row + i, channel, *reinterpret_cast<const Words*>(to.at(b, first + i, h) + channel));
    }
    __syncwarp();
  }
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    if (accumulate && first + group * kMmaM < end) {
#pragma unroll
      for (int column = 0; column < D / kMmaN; ++column)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int i = group * kMmaM + accumulator_row(lane, 2 * r);
          if (first + i >= end) continue;
          const std::uint32_t pair = tile.pair(row + i, column * kMmaN + accumulator_column(lane, 0));
          float* at = &out[group][column].at[2 * r];
          at[0] = at[0] * factor + __uint_as_float(pair << 16);
          at[1] = at[1] * factor + __uint_as_float(pair & 0xffff0000u);
        }
    }
    __syncwarp();
    const float left = accumulate ? 1.0f : factor;
    store_rows(to, b, h, first + group * kMmaM, end, out[group], {left, left}, tile, row + group * kMmaM);
  }
}

/// visible_keys of one sample, in 32 bits.
struct Visible {
  int limit, diagonal;
  const std::int32_t* ranges;

  __device__ __forceinline__ Visible(const AttentionProblem& p, int b) {
    constexpr std::int64_t kFar = 1 << 30;
    limit = static_cast<int>(p.key_lengths ? min(p.Tk, std::int64_t{p.key_lengths[b]}) : p.Tk);
    diagonal = static_cast<int>(p.causal ? min(max(p.causal_offset + 1, -kFar), kFar) : kFar);
    ranges = p.key_ranges ? p.key_ranges + 2 * b * p.Tq : nullptr;
  }
  /// Of query i, whose key range is `range`.
  __device__ __forceinline__ int2 of(int i, const int2& range) const {
    return {range.x, min(range.y, min(limit, diagonal + i))};
  }
  __device__ __forceinline__ int2 of(int i) const {
    return of(i, ranges ? int2{ranges[2 * i], ranges[2 * i + 1]} : int2{0, limit});
  }
};

/// The first of [begin, end) that fulfils a condition which all after it fulfil; end if none does.
template <class Condition>
__device__ __forceinline__ int first_where(int begin, int end, Condition condition) {
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (condition(middle))
      end = middle;
    else
      begin = middle + 1;
  }
  return begin;
}

/// D_i of the warp's queries, each quarter of a quad's channels after the other; all lanes of the warp come.
template <int D>
__device__ __forceinline__ float output_dot_of(const Heads<const bf16>& o, const Heads<const bf16>& d_o, std::int64_t b,
                                               std::int64_t h, std::int64_t i, std::int64_t end) {
  float sum = 0.0f;
  if (i < end) {
    const bf16 *a = o.at(b, i, h), *c = d_o.at(b, i, h);
#pragma unroll
    for (int channel = static_cast<int>(threadIdx.x) % 4 * kVector; channel < D; channel += 4 * kVector)
      sum += dot(a + channel, c + channel, kVector, true);
  }
  sum += __shfl_xor_sync(kFullMask, sum, 1);
  return sum + __shfl_xor_sync(kFullMask, sum, 2);
}

template <int D>
__global__ __launch_bounds__(kThreads) void attention_backward_queries_tensor_kernel(
    AttentionProblem p,
    Heads<const bf16> q,     // (B, Tq, H, D)
    Heads<const bf16> k,     // (B, Tk, H, D)
    Heads<const bf16> v,     // (B, Tk, H, D)
    Heads<const bf16> o,     // (B, Tq, H, D)
    Heads<const bf16> d_o,   // (B, Tq, H, D)
    const float* lse,        // (B, H, Tq)
    Statistics* statistics,  // (B, H, Tq)
    Heads<bf16> d_q,         // (B, Tq, H, D), of all samples where shared; or null
    int samples, bool accumulate) {
  constexpr int kGroups = kQueryGroups, kQueries = 0, kGradients = 1, kKeys = 0, kValues = 1;
  using Shared = Layout<D, kGroups>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp_row = static_cast<int>(threadIdx.x) / kWarp * kGroups * kMmaM;
  const int Tq = static_cast<int>(p.Tq), blocks_a_head = (Tq + Shared::kRows - 1) / Shared::kRows, H = static_cast<int>(p.H);
  const int block = static_cast<int>(blockIdx.x) / blocks_a_head, h = block % H, first_sample = block / H * samples;
  // Where attention is causal the last queries see the most keys: they begin first.
  const auto block_query =
      static_cast<unsigned>((blocks_a_head - 1 - static_cast<int>(blockIdx.x) % blocks_a_head) * Shared::kRows);

  const auto for_each_row = [&](auto&& f) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group)
#pragma unroll
      for (int r = 0; r < 2; ++r) f(group, r);
  };

  FragmentC gradient[kGroups][D / kMmaN] = {};
  for (int b = first_sample; b < first_sample + samples; ++b) {
    __syncthreads();  // of the sample before
    const int first_query = static_cast<int>(ptx::opaque(block_query)),
              last_query = min(first_query + Shared::kRows, Tq) - 1;
    const int warp_query = first_query + warp_row;
    const Visible visible(p, b);
    const std::uint64_t sample = p.dropout.threshold != 0 ? p.dropout.sample_ids[b] : 0;
    const int begin = visible.of(first_query).x, end = d_q.data ? visible.of(last_query).y : 0;
    const int first_tile = begin / kWalked, end_tile = end > begin ? (end - 1) / kWalked + 1 : first_tile;
    const Head key_rows(k, b, h), value_rows(v, b, h);
    const auto copy = [&](int tile) {
      copy_rows(Shared::walked(kKeys, tile % 2), key_rows, tile * kWalked, begin, end);
      copy_rows(Shared::walked(kValues, tile % 2), value_rows, tile * kWalked, begin, end);
      commit_copies();
    };
    if (first_tile < end_tile) {
      copy_rows(Shared::own(kQueries), Head(q, b, h), first_query, 0, Tq);
      copy_rows(Shared::own(kGradients), Head(d_o, b, h), first_query, 0, Tq);
      copy(first_tile);
    }

#pragma unroll
    for (int group = 0; group < kGroups; ++group)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int i = warp_query + group * kMmaM + accumulator_row(lane, 2 * r);
        const std::int64_t at = (b * p.H + h) * p.Tq + i;
        const float output_dot = output_dot_of<D>(o, d_o, b, h, i, Tq);
        const Query query{i < Tq ? lse[at] * kLog2E : 0.0f, output_dot, visible.of(min(i, last_query))};
        if (lane % 4 == 0) Shared::block_queries()[i - first_query] = query;
        if (lane % 4 == 0 && i < Tq) statistics[at] = {query.lse, query.output_dot};
      }
    __syncwarp();
    const auto query_of = [&](int group, int r) -> Query {
      return Shared::block_queries()[warp_row + group * kMmaM + accumulator_row(lane, 2 * r)];
    };
    int2 by_first{0, 0}, by_last{0, 0};  // what the warp's first and last query see
    if (warp_query < Tq) by_first = visible.of(warp_query), by_last = visible.of(min(warp_query + kGroups * kMmaM, Tq) - 1);

    for (int tile = first_tile; tile < end_tile; ++tile) {
      wait_for_copies<0>();
      __syncthreads();  // all has arrived, and nobody reads what the tile before was
      if (tile + 1 < end_tile) copy(tile + 1);
      const auto key_tile = Shared::walked(kKeys, tile % 2), value_tile = Shared::walked(kValues, tile % 2);
      const int first_key = tile * kWalked;
      if (by_last.y <= first_key || first_key + kWalked <= by_first.x) continue;

      Scores<kGroups> probabilities, d_scores;
      multiply<kGroups>(probabilities, Shared::own(kQueries), warp_row, key_tile);
      multiply<kGroups>(d_scores, Shared::own(kGradients), warp_row, value_tile);
      const bool whole = by_last.x <= first_key && first_key + kWalked <= by_first.y;
      for_each_row([&](int group, int r) {
        const Query query = query_of(group, r);
#pragma unroll
        for (int column = 0; column < kColumns; ++column)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& score = probabilities[group][column].at[2 * r + c];
            score = ptx::exp2_flushed(score * (p.scale * kLog2E) - query.lse);
          }
      });
      if (!whole)
        for_each_row([&](int group, int r) {
          const Query query = query_of(group, r);
#pragma unroll
          for (int column = 0; column < kColumns; ++column)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const int j = first_key + column * kMmaN + accumulator_column(lane, c);
              if (j < query.keys.x || j >= query.keys.y) probabilities[group][column].at[2 * r + c] = 0.0f;
            }
        });
      if (p.dropout.threshold != 0)
        for_each_row([&](int group, int r) {
          // A Philox block has a lane's columns of four accumulators (the tiled mapping of kernels/random.h).
          const PhiloxBlock random =
              sample_block(p.dropout.key, sample,
                           static_cast<std::uint32_t>(h * Tq + warp_query + group * kMmaM + accumulator_row(lane, 2 * r)),
                           static_cast<std::uint32_t>(first_key / 32 * 4 + lane % 4));
#pragma unroll
          for (int column = 0; column < kColumns; ++column)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              const bool dropped = ((random.w[column] >> (16 * c)) & 0xffffu) < p.dropout.threshold;
              float& d_score = d_scores[group][column].at[2 * r + c];
              d_score = dropped ? 0.0f : d_score * p.dropout.scale;
            }
        });
      for_each_row([&](int group, int r) {
        const float output_dot = query_of(group, r).output_dot;
#pragma unroll
        for (int column = 0; column < kColumns; ++column)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            float& d_score = d_scores[group][column].at[2 * r + c];
            d_score = probabilities[group][column].at[2 * r + c] * (d_score - output_dot);
          }
      });
      add_weighted<kGroups>(gradient, d_scores, key_tile);
    }
  }
  if (d_q.data)
    store<kGroups>(d_q, first_sample, h, static_cast<int>(block_query) + warp_row, p.Tq, gradient, p.scale, accumulate,
                   Shared::own(kQueries), warp_row);
}

/// Which of a lane's probabilities of the transposed matrix are dropped: they change sign. `first_row` is the first of the
/// columns' queries in dropout's matrix, `warp_key` the first of the warp's keys.
template <int kGroups>
__device__ __forceinline__ void mark_dropped(Scores<kGroups>& probabilities, const Dropout& dropout, std::uint64_t sample,
                                             std::uint32_t first_row, int warp_key) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool odd = lane / 4 % 2 != 0;
  const std::uint32_t block = ptx::opaque(static_cast<unsigned>(warp_key / 32 * 4 + lane / 4 / 2));
  const auto halves = [](std::uint32_t lower, std::uint32_t upper, bool high) {
    return high ? (lower >> 16) | (upper & 0xffff0000u) : (lower & 0xffffu) | (upper << 16);
  };
  // A lane's keys are one of a pair of neighbours, the lane 4 further has the other; a Philox block has both. One lane draws
  // for the first of two neighbouring queries, the other for the second, and they exchange what the other needs.
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
    const int drawn = column * kMmaN + accumulator_column(lane, odd ? 1 : 0);
    const PhiloxBlock random = sample_block(dropout.key, sample, first_row + static_cast<std::uint32_t>(drawn), block);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const bool second = kGroups == 1 ? warp_key % 32 != 0 : group != 0;
      const std::uint32_t lower = second ? random.w[2] : random.w[0], upper = second ? random.w[3] : random.w[1];
      const std::uint32_t mine = halves(lower, upper, odd);
      const std::uint32_t others = __shfl_xor_sync(kFullMask, halves(lower, upper, !odd), 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t bits = (odd == (i % 2 != 0) ? mine : others) >> (16 * (i / 2)) & 0xffffu;
        float& probability = probabilities[group][column].at[i];
        if (bits < dropout.threshold) probability = -probability;
      }
    }
  }
}

template <int D>
__global__ __launch_bounds__(kThreads) void attention_backward_keys_tensor_kernel(
    AttentionProblem p,
    Heads<const bf16> q,           // (B, Tq, H, D)
    Heads<const bf16> k,           // (B, Tk, H, D)
    Heads<const bf16> v,           // (B, Tk, H, D)
    Heads<const bf16> d_o,         // (B, Tq, H, D)
    const Statistics* statistics,  // (B, H, Tq)
    Heads<bf16> d_k,               // (B, Tk, H, D), of all samples where shared; or null
    Heads<bf16> d_v,               // (B, Tk, H, D), likewise
    int samples, bool accumulate_d_k, bool accumulate_d_v) {
  constexpr int kGroups = kKeyGroups<D>, kKeys = 0, kValues = 1, kQueries = 0, kGradients = 1;
  using Shared = Layout<D, kGroups>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp_row = static_cast<int>(threadIdx.x) / kWarp * kGroups * kMmaM;
  const int Tq = static_cast<int>(p.Tq), Tk = static_cast<int>(p.Tk),
            blocks_a_head = (Tk + Shared::kRows - 1) / Shared::kRows, H = static_cast<int>(p.H);
  const int block = static_cast<int>(blockIdx.x) / blocks_a_head, h = block % H, first_sample = block / H * samples;
  const auto block_key = static_cast<unsigned>(static_cast<int>(blockIdx.x) % blocks_a_head * Shared::kRows);
  const int query_tiles = (Tq + kWalked - 1) / kWalked;

  FragmentC key_gradient[kGroups][D / kMmaN] = {}, value_gradient[kGroups][D / kMmaN] = {};
  for (int b = first_sample; b < first_sample + samples; ++b) {
    __syncthreads();  // of the sample before
    const int first_key = static_cast<int>(ptx::opaque(block_key)), warp_key = first_key + warp_row;
    const Visible visible(p, b);
    const std::uint64_t sample = p.dropout.threshold != 0 ? p.dropout.sample_ids[b] : 0;
    // What queries see never falls: the tiles from the first with a query that sees beyond the first key to the last with
    // one that sees something before the last.
    const int first_tile =
        first_where(0, query_tiles, [&](int tile) { return visible.of(min((tile + 1) * kWalked, Tq) - 1).y > first_key; });
    const int end_tile = first_where(first_tile, query_tiles,
                                     [&](int tile) { return visible.of(tile * kWalked).x >= first_key + Shared::kRows; });
    const Head query_rows(q, b, h), gradient_rows(d_o, b, h);
    const Statistics* head_statistics = statistics + (b * p.H + h) * p.Tq;
    const auto copy = [&](int tile) {
      const int first_query = tile * kWalked, buffer = tile % 2;
      const int thread = static_cast<int>(ptx::opaque(threadIdx.x));
      copy_rows(Shared::walked(kQueries, buffer), query_rows, first_query, 0, Tq);
      copy_rows(Shared::walked(kGradients, buffer), gradient_rows, first_query, 0, Tq);
      if (thread < kWalked)  // with zeros, queries beyond the last, whose rows are zeros, add nothing
        copy_async_8(Shared::statistics(buffer).address(thread), head_statistics + first_query + thread,
                     first_query + thread < Tq ? 8 : 0);
      if (p.key_ranges && thread < 2 * kWalked && first_query + thread / 2 < Tq)
        copy_async_4(Shared::bounds(buffer).address(thread), visible.ranges + 2 * first_query + thread);
      commit_copies();
    };
    if (first_tile < end_tile) {
      const int begin = visible.of(0).x, end = visible.of(Tq - 1).y;
      copy_rows(Shared::own(kKeys), Head(k, b, h), first_key, begin, end);
      copy_rows(Shared::own(kValues), Head(v, b, h), first_key, begin, end);
      copy(first_tile);
    }

    for (int tile = first_tile; tile < end_tile; ++tile) {
      wait_for_copies<0>();
      __syncthreads();  // all has arrived, and nobody reads what the tile before was
      if (tile + 1 < end_tile) copy(tile + 1);
      const auto query_tile = Shared::walked(kQueries, tile % 2), gradient_tile = Shared::walked(kGradients, tile % 2);
      const int first_query = tile * kWalked, last = min(kWalked, Tq - first_query) - 1;
      const auto seen_by = [&](int i) {
        if (!p.key_ranges) return visible.of(first_query + i);
        return visible.of(first_query + i, Shared::ranges(tile % 2)[i]);
      };
      const int2 by_first = seen_by(0), by_last = seen_by(last);
      if (by_last.y <= warp_key || by_first.x >= warp_key + kGroups * kMmaM) continue;
      const bool whole = by_last.x <= warp_key && warp_key + kGroups * kMmaM <= by_first.y;

      // In two steps, as few values as can be alive in each: p, below 0 where it was dropped; then ds.
      const auto two_queries = [&](int column) -> float4 {
        return Shared::pairs(tile % 2)[(column * kMmaN + accumulator_column(lane, 0)) / 2];
      };
      Scores<kGroups> probabilities;
      multiply<kGroups>(probabilities, Shared::own(kKeys), warp_row, query_tile);
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const float4 two = two_queries(column);
#pragma unroll
        for (int group = 0; group < kGroups; ++group)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& score = probabilities[group][column].at[i];
            score = ptx::exp2_flushed(score * (p.scale * kLog2E) - (i % 2 == 0 ? two.x : two.z));
          }
      }
      if (!whole) {
#pragma unroll
        for (int column = 0; column < kColumns; ++column)
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int i = column * kMmaN + accumulator_column(lane, c);
            const int2 seen = seen_by(min(i, last));
#pragma unroll
            for (int group = 0; group < kGroups; ++group)
#pragma unroll
              for (int r = 0; r < 2; ++r) {
                const int j = warp_key + group * kMmaM + accumulator_row(lane, 2 * r);
                if (j < seen.x || j >= seen.y) probabilities[group][column].at[2 * r + c] = 0.0f;
              }
          }
      }
      if (p.dropout.threshold != 0)
        mark_dropped<kGroups>(probabilities, p.dropout, sample, static_cast<std::uint32_t>(h * Tq + first_query), warp_key);
      if (d_v.data) add_weighted<kGroups>(value_gradient, probabilities, gradient_tile, Positive{});
      if (!d_k.data) continue;

      Scores<kGroups> d_scores;
      multiply<kGroups>(d_scores, Shared::own(kValues), warp_row, gradient_tile);
      if (p.dropout.threshold != 0)
        for_each_score<kGroups>([&](int group, int column, int i) {
          float& d_score = d_scores[group][column].at[i];
          d_score = probabilities[group][column].at[i] < 0.0f ? 0.0f : d_score * p.dropout.scale;
        });
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const float4 two = two_queries(column);
#pragma unroll
        for (int group = 0; group < kGroups; ++group)
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float& d_score = d_scores[group][column].at[i];
            d_score = fabsf(probabilities[group][column].at[i]) * (d_score - (i % 2 == 0 ? two.y : two.w));
          }
      }
      add_weighted<kGroups>(key_gradient, d_scores, query_tile);
    }
  }
  if (d_k.data)
    store<kGroups>(d_k, first_sample, h, static_cast<int>(block_key) + warp_row, p.Tk, key_gradient, p.scale, accumulate_d_k,
                   Shared::own(kKeys), warp_row);
  if (d_v.data)
    store<kGroups>(d_v, first_sample, h, static_cast<int>(block_key) + warp_row, p.Tk, value_gradient, p.dropout.scale,
                   accumulate_d_v, Shared::own(kValues), warp_row);
}

}  // namespace

bool attention_backward_tensor(const Context& context, const AttentionBackward& op) {
  const AttentionProblem& p = op.problem;
  if (op.q.dtype != DType::bf16 || p.B * p.H == 0 || p.Tq == 0 || p.Tk == 0) return false;
  for (const ConstHeadView& view :
       {op.q, op.k, op.v, op.o, op.d_o, ConstHeadView(op.d_q), ConstHeadView(op.d_k), ConstHeadView(op.d_v)})
    if (!vectors_aligned(view)) return false;
  const auto run = [&](auto size) {
    constexpr int D = size();
    using Queries = Layout<D, kQueryGroups>;
    using Keys = Layout<D, kKeyGroups<D>>;
    constexpr std::size_t kKeysBytes = Keys::kTileBytes + 2 * kQueryBytes;
    constexpr std::size_t kQueriesBytes = Queries::kTileBytes + Queries::kRows * sizeof(Query);
    if (context.shared_bytes < std::max(kQueriesBytes, kKeysBytes)) return false;
    auto* statistics = context.workspace.array<Statistics>(static_cast<std::size_t>(p.B * p.H * p.Tq));
    // A gradient that the batch shares is summed by blocks that walk through all of its samples.
    const auto samples_of = [&](const HeadView& gradient) { return gradient && gradient.batch_stride == 0 ? p.B : 1; };
    const auto shape = [&](const char* kernel, std::int64_t length, int rows, std::size_t bytes, std::int64_t samples) {
      return LaunchShape{.kernel = kernel,
                         .grid = blocks_for(length, rows) * static_cast<unsigned>(p.B / samples * p.H),
                         .block = kThreads,
                         .shared_bytes = bytes,
                         .stream = context.stream};
    };
    // Where nobody wants d_q, all that it leaves is the statistics.
    launch(shape("attention_backward_queries_tensor", p.Tq, Queries::kRows, kQueriesBytes, samples_of(op.d_q)),
           attention_backward_queries_tensor_kernel<D>, p, heads<bf16>(op.q), heads<bf16>(op.k), heads<bf16>(op.v),
           heads<bf16>(op.o), heads<bf16>(op.d_o), static_cast<const float*>(op.lse.data), statistics, heads<bf16>(op.d_q),
           static_cast<int>(samples_of(op.d_q)), op.accumulate_d_q);
    const auto backward_keys = [&](const HeadView& d_k, const HeadView& d_v, std::int64_t samples) {
      launch(shape("attention_backward_keys_tensor", p.Tk, Keys::kRows, kKeysBytes, samples),
             attention_backward_keys_tensor_kernel<D>, p, heads<bf16>(op.q), heads<bf16>(op.k), heads<bf16>(op.v),
             heads<bf16>(op.d_o), statistics, heads<bf16>(d_k), heads<bf16>(d_v), static_cast<int>(samples),
             op.accumulate_d_k, op.accumulate_d_v);
    };
    if (op.d_k && op.d_v && samples_of(op.d_k) != samples_of(op.d_v)) {
      backward_keys(op.d_k, {}, samples_of(op.d_k));
      backward_keys({}, op.d_v, samples_of(op.d_v));
    } else if (op.d_k || op.d_v) {
      backward_keys(op.d_k, op.d_v, samples_of(op.d_k ? op.d_k : op.d_v));
    }
    return true;
  };
  bool served = false;
  with_tensor_head_size(p.D, [&](auto size) { served = run(size); });
  return served;
}

}  // namespace outeffhop::cuda
