// AttentionBackward in bf16 of sequences of up to 512 tokens, in one kernel: a block has a whole head, so that d_q, too, is
// summed in a fixed order without atomics. That makes five products where two kernels make seven (each computing the
// probabilities for itself), and D_i = do_i . o_i needs no kernel of its own. Reads q, k, v, o and d_o once from memory and
// writes d_q, d_k and d_v once.
//
// A warp has 32 keys and their gradients in registers, 128 or 256 keys a block; the block walks through tiles of 64 queries,
// which arrive while the tile before is worked on. Scores are computed transposed, keys for rows, so that p and ds are left
// operands of the products with d_o and q as they lie in registers; ds also goes to shared memory, from where the block
// multiplies it with the keys into the tile's d_q. Two rows of 16 keys a warp: each operand loaded from shared memory serves
// two tensor-core steps, without which loading would take longer than multiplying.
//
// More keys than a block has at a time, it has one after the other. What a d_q has until then is kept in fp32 by the threads
// that computed it, in global memory, from where (L2, as a rule) they take it up again.
#include "kernels/cuda/attention_resident.cuh"
#include "kernels/cuda/attention_resident.h"
#include "kernels/cuda/launch.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kMostSamples = 65535;  ///< a grid's second extent
constexpr int kWarpKeys = 32;        ///< a warp's own
constexpr int kSlices = 2;           ///< of a tile of queries
constexpr int kQueries = kSlice * kSlices;
constexpr int kFewWarps = 4, kManyWarps = 8;  ///< of a block, for few keys and for many

/// What the probabilities of two neighbouring queries are made of.
struct alignas(8) Two {
  float of[2];
};

/// LSE, in powers of two, and then D_i times a factor of `rows` queries, a multiple of 64, of which there are `end`; beyond
/// them 0, as is d_o there, so that nothing comes of it.
template <int D, int threads>
__device__ __forceinline__ void write_statistics(const SharedArray<float>& to, int rows, int end, const Head<const bf16>& o,
                                                 const Head<const bf16>& d_o, const float* lse, float factor) {
  constexpr int kChunks = D / kVector, kAtOnce = threads / kChunks, kLoads = 8;
  const int thread_row = static_cast<int>(threadIdx.x / kChunks),
            channel = static_cast<int>(threadIdx.x % kChunks) * kVector;
#pragma unroll 1
  for (int tile = 0; tile < rows; tile += kLoads * kAtOnce) {
    const int first = tile + thread_row;
    PackedVector<bf16> x[kLoads], y[kLoads];
    float log_sum[kLoads];
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {  // all under way together
      const int row = min(first + load * kAtOnce, end - 1);
      x[load] = load_packed(o.at(row, channel));
      y[load] = load_packed(d_o.at(row, channel));
      log_sum[load] = lse[row];
    }
#pragma unroll
    for (int load = 0; load < kLoads; ++load) {
      const Vector a = unpack(x[load]), c = unpack(y[load]);
      float dot = 0.0f;
#pragma unroll
      for (int e = 0; e < kVector; ++e) dot += a.at[e] * c.at[e];
#pragma unroll
      for (int distance = 1; distance < kChunks; distance *= 2) dot += __shfl_xor_sync(kFullMask, dot, distance);
      const int row = first + load * kAtOnce;
      if (channel == 0 && row < rows) {
        to[row] = row < end ? log_sum[load] * kLog2E : 0.0f;
        to[rows + row] = row < end ? dot * factor : 0.0f;
      }
    }
  }
}

/// How a block of `warps` warps uses its shared memory, and how it shares the d_q of a tile.
template <int D, int warps>
struct Plan {
  static constexpr int kThreads = warps * kWarp, kKeys = warps * kWarpKeys;
  static constexpr bool kAllKeys = warps == kFewWarps;  ///< this block is for no more keys than it has at a time
  using KeyTile = Tile<D, kKeys>;
  using QueryTile = Tile<D, kQueries>;
  using ScoreTile = Tile<kQueries, kKeys>;  ///< ds, transposed: a row a key

  static constexpr int kValues = KeyTile::kBytes, kWalked = 2 * KeyTile::kBytes;
  static constexpr int kScores = kWalked + 4 * QueryTile::kBytes, kStatistics = kScores + ScoreTile::kBytes;
  static constexpr std::size_t shared_bytes(std::int64_t query_tiles) {
    return kStatistics + static_cast<std::size_t>(query_tiles) * kQueries * 2 * sizeof(float);
  }

  static constexpr int kChannels = warps * 16 < 2 * D ? 2 * D / warps : 16;  ///< of d_q, a warp's
  static constexpr int kRows = kQueries * D / (warps * kChannels);           ///< likewise
  static constexpr int kM = kRows / kMmaM, kN = kChannels / kMmaN;
};

/// Probabilities that dropout drops change their sign. A Philox block has two neighbouring keys of each of the warp's four
/// groups of eight, and one query: the two lanes of those keys draw every other query's block, and exchange what they drew.
/// From the top, bit 4 n + w of a half is of group w and the lane's query in column n; the upper half is of the odd key.
__device__ __forceinline__ void drop(FragmentC (&probabilities)[2][4], const Dropout& dropout, std::uint64_t sample,
                                     std::uint32_t first_row, int first_key) {
  constexpr std::uint32_t kTops = 0x80008000u;  // of the two numbers in a word
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const std::uint32_t odd = lane / 4 % 2, threshold = dropout.threshold * 0x00010001u;
  std::uint32_t drawn = 0;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const PhiloxBlock random =
        sample_block(dropout.key, sample, first_row + static_cast<std::uint32_t>(8 * n + lane % 4 * 2) + odd,
                     static_cast<std::uint32_t>(first_key / 32 * 4 + lane / 8));
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      // Both numbers at once: what is left of the lower bits once the threshold's are taken away says which are as large,
      // and then two tops out of three that speak for it make a number as large as the threshold.
      const std::uint32_t word = random.w[w], lower = (word | kTops) - (threshold & ~kTops);
      const std::uint32_t at_least = (word & lower) | (word & ~threshold) | (lower & ~threshold);
      drawn |= (~at_least & kTops) >> (4 * n + w);
    }
  }
  const std::uint32_t received = __shfl_xor_sync(kFullMask, drawn, 4);
  const std::uint32_t own = odd ? drawn : drawn << 16, other = odd ? received : received << 16;
  const std::uint32_t of_query[2] = {odd ? other : own, odd ? own : other};
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      float& probability = probabilities[e / 4][n].at[e % 4];
      const std::uint32_t sign = of_query[e % 2] << (4 * n + e / 2) & 0x80000000u;
      probability = __uint_as_float(__float_as_uint(probability) ^ sign);
    }
  }
}

/// What queries do not see becomes 0.
__device__ __forceinline__ void mask(FragmentC (&probabilities)[2][4], const Visible& visible, int first_query,
                                     int last_query, int first_key) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int2 keys = visible(min(first_query + n * kMmaN + accumulator_column(lane, c), last_query));
      const int begin = keys.x - first_key - lane / 4, end = keys.y - first_key - lane / 4;
#pragma unroll
      for (int group = 0; group < 4; ++group)
        if (8 * group < begin || 8 * group >= end) probabilities[group / 2][n].at[group % 2 * 2 + c] = 0.0f;
    }
  }
}

template <int D, int warps>
__global__ __launch_bounds__(warps* kWarp) void attention_backward_resident_kernel(
    AttentionProblem p,
    Heads<const bf16> q,    // (B, Tq, H, D)
    Heads<const bf16> k,    // (B, Tk, H, D)
    Heads<const bf16> v,    // (B, Tk, H, D)
    Heads<const bf16> o,    // (B, Tq, H, D)
    Heads<const bf16> d_o,  // (B, Tq, H, D)
    const float* lse,       // (B, H, Tq)
    Heads<bf16> d_q,        // (B, Tq, H, D) or null
    Heads<bf16> d_k,        // (B, Tk, H, D) or null
    Heads<bf16> d_v,        // (B, Tk, H, D) or null
    float4* unfinished) {   // (B, H, query tiles, d_q's accumulators of a tile, threads), where a block cannot have all keys
  using P = Plan<D, warps>;
  const int thread = static_cast<int>(threadIdx.x), lane = static_cast<int>(threadIdx.x % kWarp);
  // A shuffle, so that the compiler knows it to be the whole warp's.
  const int warp = __shfl_sync(kFullMask, static_cast<int>(threadIdx.x / kWarp), 0);
  const std::int64_t h = blockIdx.x, b = blockIdx.y;
  const int Tq = static_cast<int>(p.Tq), Tk = static_cast<int>(p.Tk), query_tiles = (Tq + kQueries - 1) / kQueries;
  const int query_rows = query_tiles * kQueries;
  const typename P::KeyTile key_tile(0), value_tile(P::kValues);
  const typename P::ScoreTile score_tile(P::kScores);
  const auto query_tile = [](int buffer) { return typename P::QueryTile(P::kWalked + 2 * buffer * P::QueryTile::kBytes); };
  const auto gradient_tile = [](int buffer) {
    return typename P::QueryTile(P::kWalked + (2 * buffer + 1) * P::QueryTile::kBytes);
  };

  const Visible visible(p, b);
  const float score_factor = p.scale * p.dropout.scale;  // ds is kept without dropout's scale
  for (int first_key = 0; first_key == 0 || (!P::kAllKeys && first_key < Tk); first_key += P::kKeys) {
    // The next tile of queries that see some of these keys, or whose d_q is 0.
    const auto next = [&](int tile) {
#pragma unroll 1
      while (tile < query_tiles && !span_of(visible, kSlices * tile, Tq).is_for(first_key, P::kKeys) &&
             !span_of(visible, kSlices * tile + 1, Tq).is_for(first_key, P::kKeys))
        ++tile;
      return tile;
    };
    const auto copy = [&](int tile, int buffer) {
      copy_rows<P::kThreads>(query_tile(buffer), {q, b, h}, tile * kQueries, Tq);
      copy_rows<P::kThreads>(gradient_tile(buffer), {d_o, b, h}, tile * kQueries, Tq);
      commit_copies();
    };
    int tile = next(0), buffer = 0;
    __syncthreads();  // nobody reads the tiles of the keys before
    if (tile < query_tiles) {
      copy_rows<P::kThreads>(key_tile, {k, b, h}, first_key, Tk);
      copy_rows<P::kThreads>(value_tile, {v, b, h}, first_key, Tk);
      copy(tile, buffer);
    }
    if (first_key == 0) {
      write_statistics<D, P::kThreads>(shared_array<float>(P::kStatistics, 2 * query_rows), query_rows, Tq, {o, b, h},
                                       {d_o, b, h}, lse + (b * p.H + h) * p.Tq, 1.0f / p.dropout.scale);
    }

    const int warp_row = warp * kWarpKeys, warp_key = first_key + warp_row;
    FragmentC key_gradient[2][D / kMmaN] = {}, value_gradient[2][D / kMmaN] = {};
    while (tile < query_tiles) {
      wait_for_copies<0>();
      __syncthreads();  // this tile is there, and nobody reads the one before nor its ds
      const int following = next(tile + 1);
      if (following < query_tiles) copy(following, 1 - buffer);

#pragma unroll 1
      for (int slice = 0; slice < kSlices; ++slice) {
        const int first_query = tile * kQueries + slice * kSlice;
        const Span span = span_of(visible, kSlices * tile + slice, Tq);
        if (!span.touches(warp_key, kWarpKeys)) continue;
        const auto statistics = shared_array<Two>(P::kStatistics, query_rows);
        const int two = (first_query + lane % 4 * 2) / 2;

        FragmentC probabilities[2][4];  // below 0 where they are dropped
        multiply(probabilities, key_tile, warp_row, query_tile(buffer), slice * kSlice);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const Two log_sum = statistics[two + n * kMmaN / 2];
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            float& score = probabilities[e / 4][n].at[e % 4];
            score = ptx::exp2_flushed(score * (p.scale * kLog2E) - log_sum.of[e % 2]);
          }
        }
        if (!span.covers(warp_key, kWarpKeys)) mask(probabilities, visible, first_query, Tq - 1, warp_key);
        if (p.dropout.threshold != 0)
          drop(probabilities, p.dropout, p.dropout.sample_ids[b], static_cast<std::uint32_t>(h * p.Tq + first_query),
               warp_key);
#pragma unroll
        for (int step = 0; step < kSlice / kMmaK; ++step) {
          const FragmentA left[2] = {kept_operand(probabilities[0], step), kept_operand(probabilities[1], step)};
          add_product(value_gradient, left, gradient_tile(buffer), slice * kSlice + step * kMmaK, 0);
        }

        FragmentC d_scores[2][4];
        multiply(d_scores, value_tile, warp_row, gradient_tile(buffer), slice * kSlice);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const Two output_dot = statistics[query_rows / 2 + two + n * kMmaN / 2];
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            const float probability = probabilities[e / 4][n].at[e % 4];
            float& d_score = d_scores[e / 4][n].at[e % 4];
            d_score = fmaxf(probability, 0.0f) * d_score - fabsf(probability) * output_dot.of[e % 2];
          }
        }
#pragma unroll
        for (int step = 0; step < kSlice / kMmaK; ++step) {
          const FragmentA left[2] = {left_operand(d_scores[0], step), left_operand(d_scores[1], step)};
          add_product(key_gradient, left, query_tile(buffer), slice * kSlice + step * kMmaK, 0);
#pragma unroll
          for (int e = 0; e < 8; ++e)
            score_tile.put_pair(warp_row + e / 4 * kMmaM + e % 2 * 8 + lane / 4,
                                slice * kSlice + step * kMmaK + e % 4 / 2 * 8 + lane % 4 * 2, left[e / 4].pair[e % 4]);
        }
      }
      // A d_q that was begun with other keys sets out on its way here.
      const int row = warp % (kQueries / P::kRows) * P::kRows, channel = warp / (kQueries / P::kRows) * P::kChannels;
      const int first_query = tile * kQueries + row;
      const Span span = span_of(visible, first_query / kSlice, Tq);
      const bool mine = d_q.data && first_query < Tq && span.is_for(first_key, P::kKeys);
      float4* kept = unfinished + ((b * p.H + h) * query_tiles + tile) * (P::kM * P::kN * P::kThreads) + thread;
      FragmentC gradient[P::kM][P::kN] = {}, earlier[P::kM][P::kN] = {};
      if (!P::kAllKeys && mine && span.begin < first_key) {
#pragma unroll
        for (int f = 0; f < P::kM * P::kN; ++f) {
          const float4 four = kept[f * P::kThreads];
          earlier[f / P::kN][f % P::kN] = {{four.x, four.y, four.z, four.w}};
        }
      }
      __syncthreads();  // ds is there
      if (mine) {
        // Of the warps that had something to do.
        const int begin = max(span.begin - first_key, 0) / kMmaK * kMmaK;
        const int end = span.begin < span.end ? min(span.end - first_key, P::kKeys) : 0;
#pragma unroll 2
        for (int key = begin; key < end; key += kMmaK) {
          FragmentA left[P::kM];
#pragma unroll
          for (int m = 0; m < P::kM; ++m)
            load_matrix_x4_transposed(left[m].pair, matrices(score_tile, key, row + m * kMmaM, Second::beside));
          add_product(gradient, left, key_tile, key, channel);
        }
        if (!P::kAllKeys) {
#pragma unroll
          for (int e = 0; e < P::kM * P::kN * 4; ++e)
            gradient[e / 4 / P::kN][e / 4 % P::kN].at[e % 4] += earlier[e / 4 / P::kN][e / 4 % P::kN].at[e % 4];
        }
        if (!P::kAllKeys && span.goes_beyond(first_key + P::kKeys)) {
#pragma unroll
          for (int f = 0; f < P::kM * P::kN; ++f) {
            const FragmentC& sum = gradient[f / P::kN][f % P::kN];
            kept[f * P::kThreads] = {sum.at[0], sum.at[1], sum.at[2], sum.at[3]};
          }
        } else {
          // Through the queries, which everybody has used.
          store({d_q, b, h}, first_query, Tq, gradient, score_factor, query_tile(buffer), row, channel);
        }
      }
      tile = following;
      buffer = 1 - buffer;
    }
    if (d_k.data) store({d_k, b, h}, warp_key, Tk, key_gradient, score_factor, value_tile, warp_row, 0);
    if (d_v.data) store({d_v, b, h}, warp_key, Tk, value_gradient, p.dropout.scale, value_tile, warp_row, 0);
  }
}

}  // namespace

bool attention_backward_resident(const Context& context, const AttentionBackward& op) {
  constexpr int D = 64;
  const AttentionProblem& p = op.problem;
  if (p.D != D || op.q.dtype != DType::bf16 || op.accumulate_d_q || op.accumulate_d_k || op.accumulate_d_v) return false;
  const auto serves = [](const ConstHeadView& view) {
    return vectors_aligned(view) && view.row_stride >= 0 && view.row_stride <= kWidest;
  };
  for (const ConstHeadView& view : {op.q, op.k, op.v, op.o, op.d_o})
    if (!serves(view)) return false;
  for (const HeadView& view : {op.d_q, op.d_k, op.d_v})
    if (view && (view.batch_stride == 0 || !serves(view))) return false;
  if (p.Tq == 0 || p.Tk == 0 || p.Tq > kLongest || p.Tk > kLongest || p.B * p.H == 0 || p.B > kMostSamples) return false;
  if (reinterpret_cast<std::uintptr_t>(p.key_ranges) % alignof(int2) != 0) return false;  // both ends are loaded at once

  const std::int64_t query_tiles = (p.Tq + kQueries - 1) / kQueries;
  const auto run = [&](auto warps) {
    using P = Plan<D, warps()>;
    if (P::shared_bytes(query_tiles) > context.shared_bytes) return false;
    float4* unfinished = nullptr;
    if (p.Tk > P::kKeys)
      unfinished = context.workspace.array<float4>(static_cast<std::size_t>(p.B * p.H * query_tiles * kQueries * D) *
                                                   sizeof(float) / sizeof(float4));
    launch({.kernel = "attention_backward_resident",
            .grid = dim3(static_cast<unsigned>(p.H), static_cast<unsigned>(p.B)),
            .block = P::kThreads,
            .shared_bytes = P::shared_bytes(query_tiles),
            .stream = context.stream},
           attention_backward_resident_kernel<D, warps()>, p, heads<bf16>(op.q), heads<bf16>(op.k), heads<bf16>(op.v),
           heads<bf16>(op.o), heads<bf16>(op.d_o), static_cast<const float*>(op.lse.data), heads<bf16>(op.d_q),
           heads<bf16>(op.d_k), heads<bf16>(op.d_v), unfinished);
    return true;
  };
  if (p.Tk <= kFewWarps * kWarpKeys) return run(std::integral_constant<int, kFewWarps>{});
  return run(std::integral_constant<int, kManyWarps>{});
}

}  // namespace outeffhop::cuda
