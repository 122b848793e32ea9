// AttentionForward in bf16 on tensor cores: flash attention (Dao et al. 2022) whose first key is the normaliser's constant.
//
// Scores stay in the accumulators of tensor-core steps; p takes their place there and is, rounded to bf16, the left operand
// of the product with V. Reads q once, k and v once for each 64 queries (from L2 but for the first), writes o.
//
// What a query sees is one run of keys whose ends never fall from one query to the next: the block visits the tiles from its
// first query's first key to its last query's last. Tiles that all of a warp's queries see whole are not masked.
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/attention_tiles.cuh"
#include "kernels/cuda/launch.cuh"

namespace outeffhop::cuda {
namespace {

// Tiles in shared memory: queries, then keys and values, twice.
constexpr int kQueryTile = 0, kTiles = 5;
__device__ __forceinline__ int key_tile(int buffer) { return 1 + 2 * buffer; }
__device__ __forceinline__ int value_tile(int buffer) { return 2 + 2 * buffer; }

/// One of the two queries of a lane.
struct Row {
  KeyRange keys;  ///< that it sees
  float maximum;  ///< of its scores so far, in powers of two
  float sum;      ///< of what this lane has of 2^(score - maximum)
};

/// Scores become 2^(score - maximum), the maximum the largest so far. Returns what everything before is worth now.
__device__ __forceinline__ float exponentials(FragmentC (&scores)[kTileColumns], Row& row, int r, float factor, bool whole,
                                              std::int64_t first_key) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float largest = row.maximum;
#pragma unroll
  for (int column = 0; column < kTileColumns; ++column) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float& score = scores[column].at[2 * r + c];
      score *= factor;
      const std::int64_t j = first_key + column * kMmaN + accumulator_column(lane, c);
      if (!whole && (j < row.keys.begin || j >= row.keys.end)) score = -INFINITY;
      largest = max(largest, score);
    }
  }
  largest = max(largest, __shfl_xor_sync(kFullMask, largest, 1));
  largest = max(largest, __shfl_xor_sync(kFullMask, largest, 2));
  // A query that has seen no key yet, of the ordinary softmax: any finite maximum will do.
  const float base = largest == -INFINITY ? 0.0f : largest, correction = ptx::exp2_flushed(row.maximum - base);
  row.maximum = largest;
  row.sum *= correction;
#pragma unroll
  for (int column = 0; column < kTileColumns; ++column) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float& score = scores[column].at[2 * r + c];
      score = ptx::exp2_flushed(score - base);
      row.sum += score;
    }
  }
  return correction;
}

/// Dropout of a lane's part of one query's probabilities. A Philox block has its columns of four accumulators (the tiled
/// mapping of kernels/random.h).
__device__ __forceinline__ void drop(FragmentC (&probabilities)[kTileColumns], int r, const Dropout& dropout,
                                     std::uint64_t sample, std::uint32_t row, std::int64_t first_key) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
  for (int part = 0; part < kTileRows / 32; ++part) {
    const auto block = static_cast<std::uint32_t>((first_key / 32 + part) * 4 + lane % 4);
    const PhiloxBlock random = sample_block(dropout.key, sample, row, block);
#pragma unroll
    for (int column = 0; column < 4; ++column) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& probability = probabilities[4 * part + column].at[2 * r + c];
        const bool dropped = ((random.w[column] >> (16 * c)) & 0xffffu) < dropout.threshold;
        probability = dropped ? 0.0f : probability * dropout.scale;
      }
    }
  }
}

template <int D>
__global__ __launch_bounds__(kTileThreads) void attention_forward_tensor_kernel(AttentionProblem p,
                                                                                Heads<const bf16> q,  // (B, Tq, H, D)
                                                                                Heads<const bf16> k,  // (B, Tk, H, D)
                                                                                Heads<const bf16> v,  // (B, Tk, H, D)
                                                                                Heads<bf16> o,        // (B, Tq, H, D)
                                                                                float* lse) {         // (B, H, Tq) or null
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp_row = static_cast<int>(threadIdx.x) / kWarp * kMmaM;
  const std::int64_t blocks_a_head = (p.Tq + kTileRows - 1) / kTileRows;
  const std::int64_t h = blockIdx.x / blocks_a_head % p.H, b = blockIdx.x / blocks_a_head / p.H;
  const std::int64_t first_query = blockIdx.x % blocks_a_head * kTileRows, warp_query = first_query + warp_row;
  const std::int64_t last_query = min(first_query + kTileRows, p.Tq) - 1;
  const KeyRange keys{visible_keys(p, b, first_query).begin, visible_keys(p, b, last_query).end};
  const std::int64_t first_tile = keys.begin / kTileRows;
  const int tiles = keys.end > keys.begin ? static_cast<int>((keys.end - 1) / kTileRows + 1 - first_tile) : 0;

  copy_tile<D>(shared_tile<D>(kQueryTile), q, b, h, first_query, 0, p.Tq);
  if (tiles > 0) {
    copy_tile<D>(shared_tile<D>(key_tile(0)), k, b, h, first_tile * kTileRows, keys.begin, keys.end);
    copy_tile<D>(shared_tile<D>(value_tile(0)), v, b, h, first_tile * kTileRows, keys.begin, keys.end);
  }
  commit_copies();

  const float n = softmax_constant(p);
  Row rows[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const std::int64_t i = warp_query + lane / 4 + 8 * r;
    rows[r].keys = i < p.Tq ? visible_keys(p, b, i) : KeyRange{0, 0};
    rows[r].maximum = n > 0.0f ? log2f(n) : -INFINITY;
    rows[r].sum = n > 0.0f && lane % 4 == 0 ? 1.0f : 0.0f;
  }
  KeyRange seen_by_all{0, 0};
  if (warp_query + kMmaM <= p.Tq)
    seen_by_all = {visible_keys(p, b, warp_query + kMmaM - 1).begin, visible_keys(p, b, warp_query).end};

  FragmentC output[D / kMmaN] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    const std::int64_t first_key = (first_tile + tile) * kTileRows;
    const int buffer = tile % 2;
    if (tile + 1 < tiles) {
      copy_tile<D>(shared_tile<D>(key_tile(1 - buffer)), k, b, h, first_key + kTileRows, keys.begin, keys.end);
      copy_tile<D>(shared_tile<D>(value_tile(1 - buffer)), v, b, h, first_key + kTileRows, keys.begin, keys.end);
    }
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();

    FragmentC scores[kTileColumns];
    multiply_rows<D>(scores, shared_tile<D>(kQueryTile), warp_row, shared_tile<D>(key_tile(buffer)));
    const bool whole = seen_by_all.begin <= first_key && first_key + kTileRows <= seen_by_all.end;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float correction = exponentials(scores, rows[r], r, p.scale * kLog2E, whole, first_key);
#pragma unroll
      for (int column = 0; column < D / kMmaN; ++column) {
        output[column].at[2 * r] *= correction;
        output[column].at[2 * r + 1] *= correction;
      }
      if (p.dropout.threshold != 0)
        drop(scores, r, p.dropout, p.dropout.sample_ids[b],
             static_cast<std::uint32_t>(h * p.Tq + warp_query + lane / 4 + 8 * r), first_key);
    }
    add_weighted_rows<D>(output, scores, shared_tile<D>(value_tile(buffer)));
    __syncthreads();  // the next turn copies into what this one has read
  }
  wait_for_copies<0>();
  __syncthreads();

  float factor[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows[r].sum;
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    sum += __shfl_xor_sync(kFullMask, sum, 2);
    const bool empty = sum == 0.0f;  // the ordinary softmax of no key
    factor[r] = empty ? 0.0f : 1.0f / sum;
    const std::int64_t i = warp_query + lane / 4 + 8 * r;
    if (lse && lane % 4 == 0 && i < p.Tq)
      lse[(b * p.H + h) * p.Tq + i] = empty ? 0.0f : (rows[r].maximum + log2f(sum)) * kLn2;
  }
  store_rows<D>(o, b, h, first_query, p.Tq, output, factor, kQueryTile);
}

}  // namespace

bool attention_forward_tensor(const Context& context, const AttentionForward& op) {
  const AttentionProblem& p = op.problem;
  if (op.q.dtype != DType::bf16) return false;
  for (const ConstHeadView& view : {op.q, op.k, op.v, ConstHeadView(op.o)})
    if (!vectors_aligned(view)) return false;
  return with_tensor_head_size<128>(p.D, [&](auto size) {
    launch({.kernel = "attention_forward_tensor",
            .grid = blocks_for(p.Tq, kTileRows) * static_cast<unsigned>(p.B * p.H),
            .block = kTileThreads,
            .shared_bytes = kTiles * TileShape<size()>::kBytes,
            .stream = context.stream},
           attention_forward_tensor_kernel<size()>, p, heads<bf16>(op.q), heads<bf16>(op.k), heads<bf16>(op.v),
           heads<bf16>(op.o), static_cast<float*>(op.lse.data));
  });
}

}  // namespace outeffhop::cuda
