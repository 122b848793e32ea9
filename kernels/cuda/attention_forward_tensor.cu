// AttentionForward in bf16 on tensor cores, for head sizes 32, 64, 80, 96 and 128: flash attention (Dao et al. 2022) with
// the normaliser's constant as the first key.
//
// A block has 64 queries of one head, 16 a warp. Keys and values come in tiles of 64, copied to shared memory while the tile
// before is worked on. S = Q K^T stays in the accumulators of tensor-core steps; p takes its place there and is, rounded to
// bf16, the left operand of the product with V: accumulator and operand lie alike in registers. Rows of shared memory have
// 16 bytes of padding, so that the eight rows that a matrix load takes lie in different banks.
//
// What a query sees is one run of keys whose ends never fall from one query to the next: the block visits the tiles from its
// first query's first key to its last query's last. Tiles that all of a warp's queries see whole are not masked.
#include "kernels/cuda/attention_forward_tensor.h"
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/bf16_pair.cuh"
#include "kernels/cuda/ptx/exp2.cuh"
#include "kernels/cuda/ptx/load_matrix.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/words.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kQueries = kWarps * kMmaM;  // of a block
constexpr int kKeys = 64;                 // of a tile
constexpr int kKeyColumns = kKeys / kMmaN;
constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;

/// Where things lie in the block's shared memory.
template <int D>
struct Layout {
  static constexpr int kRow = D + 8;  ///< elements from one row to the next
  static constexpr int kTile = kKeys * kRow;
  static constexpr int kTileBytes = kTile * static_cast<int>(sizeof(bf16));
  static constexpr int kBytes = 5 * kTileBytes;  ///< queries; keys and values, twice

  __device__ static SharedArray<bf16> queries() { return shared_array<bf16>(0, kTile); }
  __device__ static SharedArray<bf16> keys(int buffer) { return shared_array<bf16>((1 + 2 * buffer) * kTileBytes, kTile); }
  __device__ static SharedArray<bf16> values(int buffer) { return shared_array<bf16>((2 + 2 * buffer) * kTileBytes, kTile); }
};

/// Begins to copy rows [first, first + 64) of one head; rows outside of [begin, end) become 0.
template <int D>
__device__ __forceinline__ void copy_tile(const SharedArray<bf16>& to, const Heads<const bf16>& from, std::int64_t b,
                                          std::int64_t h, std::int64_t first, std::int64_t begin, std::int64_t end) {
  constexpr int kChunks = D / kVector;
  for (int number = static_cast<int>(threadIdx.x); number < kKeys * kChunks; number += kThreads) {
    const int row = number / kChunks, channel = number % kChunks * kVector;
    const bool inside = begin <= first + row && first + row < end;
    copy_async_16(to.address(row * Layout<D>::kRow + channel), from.at(b, inside ? first + row : begin, h) + channel,
                  inside ? 16 : 0);
  }
}

/// The address that this lane gives to load four matrices, 8 x 8 each: rows from `row`, columns from `column`. `down_first`:
/// the second matrix is below the first, not beside it.
template <int D>
__device__ __forceinline__ const bf16* four_matrices(const SharedArray<bf16>& from, int row, int column, bool down_first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, matrix = lane / 8, in_matrix = lane % 8;
  const int down = down_first ? matrix % 2 : matrix / 2, beside = down_first ? matrix / 2 : matrix % 2;
  return from.address((row + 8 * down + in_matrix) * Layout<D>::kRow + column + 8 * beside);
}

/// One of the two queries of a lane.
struct Row {
  std::int64_t begin, end;  ///< the keys it sees
  float maximum;            ///< of its scores so far, in powers of two
  float sum;                ///< of what this lane has of 2^(score - maximum)
};

template <int D>
__global__ __launch_bounds__(kThreads) void attention_forward_tensor_kernel(AttentionProblem p,
                                                                            Heads<const bf16> q,  // (B, Tq, H, D)
                                                                            Heads<const bf16> k,  // (B, Tk, H, D)
                                                                            Heads<const bf16> v,  // (B, Tk, H, D)
                                                                            Heads<bf16> o,        // (B, Tq, H, D)
                                                                            float* lse) {         // (B, H, Tq) or null
  using L = Layout<D>;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t blocks_a_head = (p.Tq + kQueries - 1) / kQueries;
  const std::int64_t h = blockIdx.x / blocks_a_head % p.H, b = blockIdx.x / blocks_a_head / p.H;
  const std::int64_t first_query = blockIdx.x % blocks_a_head * kQueries, last_query = min(first_query + kQueries, p.Tq) - 1;
  const std::int64_t begin = visible_keys(p, b, first_query).begin, end = visible_keys(p, b, last_query).end;
  const std::int64_t first_tile = begin / kKeys, tiles = end > begin ? (end - 1) / kKeys + 1 - first_tile : 0;

  const float n = softmax_constant(p);
  Row rows[2];
  const std::int64_t warp_query = first_query + warp * kMmaM;
  KeyRange seen_by_all{begin, end};
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const std::int64_t i = warp_query + lane / 4 + 8 * r;
    const KeyRange keys = i < p.Tq ? visible_keys(p, b, i) : KeyRange{0, 0};
    rows[r] = {keys.begin, keys.end, n > 0.0f ? log2f(n) : -INFINITY, n > 0.0f && lane % 4 == 0 ? 1.0f : 0.0f};
  }
  if (warp_query + kMmaM <= p.Tq) {
    seen_by_all = {visible_keys(p, b, warp_query + kMmaM - 1).begin, visible_keys(p, b, warp_query).end};
  } else {
    seen_by_all = {0, 0};
  }

  copy_tile<D>(L::queries(), q, b, h, first_query, 0, p.Tq);
  if (tiles > 0) {
    copy_tile<D>(L::keys(0), k, b, h, first_tile * kKeys, begin, end);
    copy_tile<D>(L::values(0), v, b, h, first_tile * kKeys, begin, end);
  }
  commit_copies();

  FragmentA query[D / kMmaK];
  FragmentC output[D / kMmaN] = {};
  for (int tile = 0; tile < tiles; ++tile) {
    const std::int64_t first_key = (first_tile + tile) * kKeys;
    const int buffer = tile % 2;
    if (tile + 1 < tiles) {
      copy_tile<D>(L::keys(1 - buffer), k, b, h, first_key + kKeys, begin, end);
      copy_tile<D>(L::values(1 - buffer), v, b, h, first_key + kKeys, begin, end);
    }
    commit_copies();
    wait_for_copies<1>();
    __syncthreads();
    if (tile == 0) {
#pragma unroll
      for (int step = 0; step < D / kMmaK; ++step)
        load_matrix_x4(query[step].pair, four_matrices<D>(L::queries(), warp * kMmaM, step * kMmaK, true));
    }

    FragmentC scores[kKeyColumns] = {};
#pragma unroll
    for (int step = 0; step < D / kMmaK; ++step) {
#pragma unroll
      for (int column = 0; column < kKeyColumns; column += 2) {
        std::uint32_t pairs[4];
        load_matrix_x4(pairs, four_matrices<D>(L::keys(buffer), column * kMmaN, step * kMmaK, false));
        mma_16x8x16(scores[column], query[step], {{pairs[0], pairs[1]}});
        mma_16x8x16(scores[column + 1], query[step], {{pairs[2], pairs[3]}});
      }
    }

    const float factor = p.scale * kLog2E;
    const bool whole = seen_by_all.begin <= first_key && first_key + kKeys <= seen_by_all.end;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = rows[r].maximum;
#pragma unroll
      for (int column = 0; column < kKeyColumns; ++column) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[column].at[2 * r + c];
          score *= factor;
          const std::int64_t j = first_key + column * kMmaN + accumulator_column(lane, c);
          if (!whole && (j < rows[r].begin || j >= rows[r].end)) score = -INFINITY;
          largest = max(largest, score);
        }
      }
      largest = max(largest, __shfl_xor_sync(kFullMask, largest, 1));
      largest = max(largest, __shfl_xor_sync(kFullMask, largest, 2));
      // A query that has seen no key yet, of the ordinary softmax: any finite maximum will do.
      const float base = largest == -INFINITY ? 0.0f : largest;
      const float correction = ptx::exp2_flushed(rows[r].maximum - base);
      rows[r].maximum = largest;
      rows[r].sum *= correction;
#pragma unroll
      for (int column = 0; column < D / kMmaN; ++column) {
        output[column].at[2 * r] *= correction;
        output[column].at[2 * r + 1] *= correction;
      }
#pragma unroll
      for (int column = 0; column < kKeyColumns; ++column) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& score = scores[column].at[2 * r + c];
          score = ptx::exp2_flushed(score - base);
          rows[r].sum += score;
        }
      }
    }

    if (p.dropout.threshold != 0) {
      const std::uint64_t sample = p.dropout.sample_ids[b];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const auto row = static_cast<std::uint32_t>(h * p.Tq + warp_query + lane / 4 + 8 * r);
#pragma unroll
        for (int half = 0; half < kKeys / 32; ++half) {
          // One block has this lane's columns of four accumulators (kernels/random.h, the tiled mapping).
          const PhiloxBlock random =
              sample_block(p.dropout.key, sample, row, static_cast<std::uint32_t>((first_key / 32 + half) * 4 + lane % 4));
#pragma unroll
          for (int column = 0; column < 4; ++column) {
#pragma unroll
            for (int c = 0; c < 2; ++c) {
              float& score = scores[4 * half + column].at[2 * r + c];
              score = ((random.w[column] >> (16 * c)) & 0xffffu) < p.dropout.threshold ? 0.0f : score * p.dropout.scale;
            }
          }
        }
      }
    }

#pragma unroll
    for (int step = 0; step < kKeys / kMmaK; ++step) {
      const FragmentC &left = scores[2 * step], &right = scores[2 * step + 1];
      const FragmentA weights{{ptx::bf16_pair(left.at[0], left.at[1]), ptx::bf16_pair(left.at[2], left.at[3]),
                               ptx::bf16_pair(right.at[0], right.at[1]), ptx::bf16_pair(right.at[2], right.at[3])}};
#pragma unroll
      for (int column = 0; column < D / kMmaN; column += 2) {
        std::uint32_t pairs[4];
        load_matrix_x4_transposed(pairs, four_matrices<D>(L::values(buffer), step * kMmaK, column * kMmaN, true));
        mma_16x8x16(output[column], weights, {{pairs[0], pairs[1]}});
        mma_16x8x16(output[column + 1], weights, {{pairs[2], pairs[3]}});
      }
    }
    __syncthreads();  // the next turn copies into what this one has read
  }
  wait_for_copies<0>();
  __syncthreads();

  // Through shared memory, so that 16 bytes are stored at a time; each warp has its own rows.
  const auto staged = shared_array<std::uint32_t>(0, L::kTile / 2);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = rows[r].sum;
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    sum += __shfl_xor_sync(kFullMask, sum, 2);
    const bool empty = sum == 0.0f;  // the ordinary softmax of no key
    const float inverse = empty ? 0.0f : 1.0f / sum;
    const int row = warp * kMmaM + lane / 4 + 8 * r;
#pragma unroll
    for (int column = 0; column < D / kMmaN; ++column)
      staged[(row * L::kRow + column * kMmaN) / 2 + lane % 4] =
          ptx::bf16_pair(output[column].at[2 * r] * inverse, output[column].at[2 * r + 1] * inverse);
    const std::int64_t i = first_query + row;
    if (lse && lane % 4 == 0 && i < p.Tq)
      lse[(b * p.H + h) * p.Tq + i] = empty ? 0.0f : (rows[r].maximum + log2f(sum)) * kLn2;
  }
  __syncwarp();
  const auto vectors = shared_array<Words>(0, L::kTile / kVector);
  constexpr int kChunks = D / kVector;
  for (int number = lane; number < kMmaM * kChunks; number += kWarp) {
    const int row = warp * kMmaM + number / kChunks, channel = number % kChunks * kVector;
    if (first_query + row < p.Tq) {
      const Words words = vectors[(row * L::kRow + channel) / kVector];
      *reinterpret_cast<Words*>(o.at(b, first_query + row, h) + channel) = words;
    }
  }
}

template <int D>
void launch_tensor(const Context& context, const AttentionForward& op) {
  const AttentionProblem& p = op.problem;
  launch({.kernel = "attention_forward_tensor",
          .grid = blocks_for(p.Tq, kQueries) * static_cast<unsigned>(p.B * p.H),
          .block = kThreads,
          .shared_bytes = Layout<D>::kBytes,
          .stream = context.stream},
         attention_forward_tensor_kernel<D>, p, heads<bf16>(op.q), heads<bf16>(op.k), heads<bf16>(op.v), heads<bf16>(op.o),
         static_cast<float*>(op.lse.data));
}

}  // namespace

bool attention_forward_tensor(const Context& context, const AttentionForward& op) {
  if (op.q.dtype != DType::bf16 || !vectors_aligned(op.q) || !vectors_aligned(op.k) || !vectors_aligned(op.v) ||
      !vectors_aligned(op.o))
    return false;
  switch (op.problem.D) {
    case 32:
      launch_tensor<32>(context, op);
      return true;
    case 64:
      launch_tensor<64>(context, op);
      return true;
    case 80:
      launch_tensor<80>(context, op);
      return true;
    case 96:
      launch_tensor<96>(context, op);
      return true;
    case 128:
      launch_tensor<128>(context, op);
      return true;
    default:
      return false;
  }
}

}  // namespace outeffhop::cuda
