// AttentionBackward in bf16 on tensor cores, deterministic without atomics: one kernel sums d_q, a block having 64 queries
// and walking through the keys they see; another sums d_k and d_v, a block having 64 keys and walking through the queries
// that see them. Both compute the probabilities anew from the scores and LSE, so that there are seven products, where a
// kernel that adds d_q by atomics makes five.
//
// The second works on the transposed matrix: a warp's accumulators have keys for rows and queries for columns, so that p and
// ds are again left operands as they lie in registers. What it needs of each query comes from shared memory.
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/launch.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kTileRows = 64, kTileThreads = kTileRows / kMmaM * kWarp, kTileColumns = kTileRows / kMmaN;

// Tiles in shared memory: the block's own two, then two that it walks through, twice.
constexpr int kTiles = 6;
template <int D>
__device__ __forceinline__ Tile<D, kTileRows> shared_tile(int number) {
  return Tile<D, kTileRows>(number * Tile<D, kTileRows>::kBytes);
}
__device__ __forceinline__ int walked_tile(int which, int buffer) { return 2 + 2 * buffer + which; }

/// What a query's row of probabilities is made of.
struct alignas(16) Query {
  float lse;         ///< in powers of two
  float output_dot;  ///< D_i
  int begin, end;    ///< the keys it sees; none beyond the last query
};

__device__ __forceinline__ Query query_of(const AttentionProblem& p, const float* lse, const float* output_dot,
                                          std::int64_t b, std::int64_t h, std::int64_t i) {
  if (i >= p.Tq) return {0.0f, 0.0f, 0, 0};
  const KeyRange keys = visible_keys(p, b, i);
  const std::int64_t at = (b * p.H + h) * p.Tq + i;
  return {lse[at] * kLog2E, output_dot[at], static_cast<int>(keys.begin), static_cast<int>(keys.end)};
}

/// p of a query and key j from q . k; `factor` turns that into powers of two. 0 where the query does not see the key.
__device__ __forceinline__ float probability_of(float score, const Query& query, std::int64_t j, float factor) {
  return query.begin <= j && j < query.end ? ptx::exp2_flushed(score * factor - query.lse) : 0.0f;
}

template <int D>
__global__ __launch_bounds__(kTileThreads) void attention_backward_queries_tensor_kernel(
    AttentionProblem p,
    Heads<const bf16> q,      // (B, Tq, H, D)
    Heads<const bf16> k,      // (B, Tk, H, D)
    Heads<const bf16> v,      // (B, Tk, H, D)
    Heads<const bf16> d_o,    // (B, Tq, H, D)
    const float* lse,         // (B, H, Tq)
    const float* output_dot,  // (B, H, Tq)
    Heads<bf16> d_q) {        // (B, Tq, H, D)
  constexpr int kQueryTile = 0, kGradientTile = 1, kKeys = 0, kValues = 1;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp_row = static_cast<int>(threadIdx.x) / kWarp * kMmaM;
  const std::int64_t blocks_a_head = (p.Tq + kTileRows - 1) / kTileRows;
  const std::int64_t h = blockIdx.x / blocks_a_head % p.H, b = blockIdx.x / blocks_a_head / p.H;
  const std::int64_t first_query = blockIdx.x % blocks_a_head * kTileRows;
  const std::int64_t last_query = min(first_query + kTileRows, p.Tq) - 1;
  const KeyRange keys{visible_keys(p, b, first_query).begin, visible_keys(p, b, last_query).end};
  const std::int64_t first_tile = keys.begin / kTileRows;
  const int tiles = keys.end > keys.begin ? static_cast<int>((keys.end - 1) / kTileRows + 1 - first_tile) : 0;

  const auto copy = [&](std::int64_t first_key, int buffer) {
    copy_tile<kTileThreads>(shared_tile<D>(walked_tile(kKeys, buffer)), k, b, h, first_key, keys.begin, keys.end);
    copy_tile<kTileThreads>(shared_tile<D>(walked_tile(kValues, buffer)), v, b, h, first_key, keys.begin, keys.end);
  };
  copy_tile<kTileThreads>(shared_tile<D>(kQueryTile), q, b, h, first_query, 0, p.Tq);
  copy_tile<kTileThreads>(shared_tile<D>(kGradientTile), d_o, b, h, first_query, 0, p.Tq);
  if (tiles > 0) copy(first_tile * kTileRows, 0);
  commit_copies();

  Query queries[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) queries[r] = query_of(p, lse, output_dot, b, h, first_query + warp_row + lane / 4 + 8 * r);

  FragmentC gradient[D / kMmaN] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    const std::int64_t first_key = (first_tile + tile) * kTileRows;
    const int buffer = tile % 2;
    if (tile + 1 < tiles) copy(first_key + kTileRows, 1 - buffer);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();

    FragmentC scores[kTileColumns], d_scores[kTileColumns];
    multiply_rows(scores, shared_tile<D>(kQueryTile), warp_row, shared_tile<D>(walked_tile(kKeys, buffer)));
    multiply_rows(d_scores, shared_tile<D>(kGradientTile), warp_row, shared_tile<D>(walked_tile(kValues, buffer)));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int part = 0; part < kTileRows / 32; ++part) {
        PhiloxBlock random{};
        if (p.dropout.threshold != 0)
          random = sample_block(p.dropout.key, p.dropout.sample_ids[b],
                                static_cast<std::uint32_t>(h * p.Tq + first_query + warp_row + lane / 4 + 8 * r),
                                static_cast<std::uint32_t>((first_key / 32 + part) * 4 + lane % 4));
#pragma unroll
        for (int column = 0; column < 4; ++column) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const bool dropped = ((random.w[column] >> (16 * c)) & 0xffffu) < p.dropout.threshold;
            const std::int64_t j = first_key + (4 * part + column) * kMmaN + accumulator_column(lane, c);
            const float probability =
                probability_of(scores[4 * part + column].at[2 * r + c], queries[r], j, p.scale * kLog2E);
            float& d_score = d_scores[4 * part + column].at[2 * r + c];
            d_score = probability * (d_score * (dropped ? 0.0f : p.dropout.scale) - queries[r].output_dot);
          }
        }
      }
    }
    add_weighted_rows(gradient, d_scores, shared_tile<D>(walked_tile(kKeys, buffer)));
    __syncthreads();  // the next turn copies into what this one has read
  }
  wait_for_copies<0>();
  __syncthreads();
  store_rows(d_q, b, h, first_query + warp_row, p.Tq, gradient, {p.scale, p.scale}, shared_tile<D>(kQueryTile), warp_row);
}

template <int D>
__global__ __launch_bounds__(kTileThreads) void attention_backward_keys_tensor_kernel(
    AttentionProblem p,
    Heads<const bf16> q,      // (B, Tq, H, D)
    Heads<const bf16> k,      // (B, Tk, H, D)
    Heads<const bf16> v,      // (B, Tk, H, D)
    Heads<const bf16> d_o,    // (B, Tq, H, D)
    const float* lse,         // (B, H, Tq)
    const float* output_dot,  // (B, H, Tq)
    Heads<bf16> d_k,          // (B, Tk, H, D) or null
    Heads<bf16> d_v) {        // (B, Tk, H, D) or null
  constexpr int kKeyTile = 0, kValueTile = 1, kQueries = 0, kGradients = 1;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp_row = static_cast<int>(threadIdx.x) / kWarp * kMmaM;
  const std::int64_t blocks_a_head = (p.Tk + kTileRows - 1) / kTileRows;
  const std::int64_t h = blockIdx.x / blocks_a_head % p.H, b = blockIdx.x / blocks_a_head / p.H;
  const std::int64_t first_key = blockIdx.x % blocks_a_head * kTileRows;

  // The tiles of queries between the first and the last that sees one of these keys: those between see some, too.
  const auto sees = [&](std::int64_t tile) {
    const std::int64_t first = tile * kTileRows, last = min(first + kTileRows, p.Tq) - 1;
    return visible_keys(p, b, first).begin < first_key + kTileRows && visible_keys(p, b, last).end > first_key;
  };
  const std::int64_t query_tiles = (p.Tq + kTileRows - 1) / kTileRows;
  std::int64_t first_tile = p.causal ? max(std::int64_t{0}, first_key - p.causal_offset) / kTileRows : 0;
  while (first_tile < query_tiles && !sees(first_tile)) ++first_tile;
  std::int64_t end_tile = query_tiles;
  while (end_tile > first_tile && !sees(end_tile - 1)) --end_tile;
  const int tiles = static_cast<int>(max(std::int64_t{0}, end_tile - first_tile));

  const auto queries_of = [&](int buffer) {
    return shared_array<Query>(kTiles * Tile<D, kTileRows>::kBytes + buffer * kTileRows * static_cast<int>(sizeof(Query)),
                               kTileRows);
  };
  const auto copy = [&](std::int64_t first_query, int buffer) {
    copy_tile<kTileThreads>(shared_tile<D>(walked_tile(kQueries, buffer)), q, b, h, first_query, 0, p.Tq);
    copy_tile<kTileThreads>(shared_tile<D>(walked_tile(kGradients, buffer)), d_o, b, h, first_query, 0, p.Tq);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < kTileRows) queries_of(buffer)[thread] = query_of(p, lse, output_dot, b, h, first_query + thread);
  };
  copy_tile<kTileThreads>(shared_tile<D>(kKeyTile), k, b, h, first_key, 0, p.Tk);
  copy_tile<kTileThreads>(shared_tile<D>(kValueTile), v, b, h, first_key, 0, p.Tk);
  if (tiles > 0) copy(first_tile * kTileRows, 0);
  commit_copies();

  FragmentC key_gradient[D / kMmaN] = {}, value_gradient[D / kMmaN] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    const std::int64_t first_query = (first_tile + tile) * kTileRows;
    const int buffer = tile % 2;
    if (tile + 1 < tiles) copy(first_query + kTileRows, 1 - buffer);
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();

    // In two steps, as few values as can be alive in each: p, below 0 where it was dropped; then ds.
    FragmentC probabilities[kTileColumns];
    multiply_rows(probabilities, shared_tile<D>(kKeyTile), warp_row, shared_tile<D>(walked_tile(kQueries, buffer)));
    const SharedArray<Query> queries = queries_of(buffer);
    const std::int64_t j = first_key + warp_row + lane / 4;
#pragma unroll
    for (int column = 0; column < kTileColumns; ++column) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int i = column * kMmaN + accumulator_column(lane, c);
        const Query query = queries[i];
        // A lane's two keys are eight apart: one Philox block has both, in neighbouring words.
        PhiloxBlock random{};
        if (p.dropout.threshold != 0)
          random =
              sample_block(p.dropout.key, p.dropout.sample_ids[b], static_cast<std::uint32_t>(h * p.Tq + first_query + i),
                           static_cast<std::uint32_t>(j / 32 * 4 + j % 8 / 2));
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& score = probabilities[column].at[2 * r + c];
          const std::uint32_t word = j % 32 < 16 ? random.w[r] : random.w[2 + r];
          const bool dropped = ((word >> (16 * (j % 2))) & 0xffffu) < p.dropout.threshold;
          const float probability = probability_of(score, query, j + 8 * r, p.scale * kLog2E);
          score = dropped ? -probability : probability;
        }
      }
    }
    add_weighted_rows(value_gradient, probabilities, shared_tile<D>(walked_tile(kGradients, buffer)), Positive{});

    FragmentC d_scores[kTileColumns];
    multiply_rows(d_scores, shared_tile<D>(kValueTile), warp_row, shared_tile<D>(walked_tile(kGradients, buffer)));
#pragma unroll
    for (int column = 0; column < kTileColumns; ++column) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const Query query = queries[column * kMmaN + accumulator_column(lane, c)];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float probability = probabilities[column].at[2 * r + c], drop = probability < 0.0f ? 0.0f : p.dropout.scale;
          float& d_score = d_scores[column].at[2 * r + c];
          d_score = fabsf(probability) * (d_score * drop - query.output_dot);
        }
      }
    }
    add_weighted_rows(key_gradient, d_scores, shared_tile<D>(walked_tile(kQueries, buffer)));
    __syncthreads();  // the next turn copies into what this one has read
  }
  wait_for_copies<0>();
  __syncthreads();
  if (d_k.data)
    store_rows(d_k, b, h, first_key + warp_row, p.Tk, key_gradient, {p.scale, p.scale}, shared_tile<D>(kKeyTile), warp_row);
  if (d_v.data)
    store_rows(d_v, b, h, first_key + warp_row, p.Tk, value_gradient, {p.dropout.scale, p.dropout.scale},
               shared_tile<D>(kValueTile), warp_row);
}

}  // namespace

bool attention_backward_tensor(const Context& context, const AttentionBackward& op, const float* output_dot) {
  const AttentionProblem& p = op.problem;
  if (op.q.dtype != DType::bf16 || op.accumulate_d_q || op.accumulate_d_k || op.accumulate_d_v) return false;
  for (const ConstHeadView& view : {op.q, op.k, op.v, op.d_o})
    if (!vectors_aligned(view)) return false;
  for (const HeadView& view : {op.d_q, op.d_k, op.d_v})
    if (view && (view.batch_stride == 0 || !vectors_aligned(view))) return false;
  if (p.Tq == 0 || p.Tk == 0) return false;
  const auto* lse = static_cast<const float*>(op.lse.data);
  return with_tensor_head_size<96>(p.D, [&](auto size) {
    constexpr int D = size();
    constexpr std::size_t kTileBytes = kTiles * Tile<D, kTileRows>::kBytes;
    if (op.d_q)
      launch({.kernel = "attention_backward_queries_tensor",
              .grid = blocks_for(p.Tq, kTileRows) * static_cast<unsigned>(p.B * p.H),
              .block = kTileThreads,
              .shared_bytes = kTileBytes,
              .stream = context.stream},
             attention_backward_queries_tensor_kernel<D>, p, heads<bf16>(op.q), heads<bf16>(op.k), heads<bf16>(op.v),
             heads<bf16>(op.d_o), lse, output_dot, heads<bf16>(op.d_q));
    if (op.d_k || op.d_v)
      launch({.kernel = "attention_backward_keys_tensor",
              .grid = blocks_for(p.Tk, kTileRows) * static_cast<unsigned>(p.B * p.H),
              .block = kTileThreads,
              .shared_bytes = kTileBytes + 2 * kTileRows * sizeof(Query),
              .stream = context.stream},
             attention_backward_keys_tensor_kernel<D>, p, heads<bf16>(op.q), heads<bf16>(op.k), heads<bf16>(op.v),
             heads<bf16>(op.d_o), lse, output_dot, heads<bf16>(op.d_k), heads<bf16>(op.d_v));
  });
}

}  // namespace outeffhop::cuda
