// AttentionForward in bf16 on tensor cores where a head's keys and values fit into shared memory, to 512 keys at head
// size 64.
//
// A block has a head: reads q, k and v once, writes o. Keys and values arrive while the warps' first queries work on those
// that are there; from the second queries on, a warp waits for nobody. The results are bit for bit those of
// attention_forward_tensor.cu, which takes the same slices in the same order.
#include <iterator>

#include "kernels/cuda/attention_forward_queries.cuh"
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/attention_tile_table.h"
#include "kernels/cuda/launch.cuh"

namespace outeffhop::cuda {
namespace {

template <int D, int warps>
constexpr ForwardTile kEntry = entry_of(kResidentTiles, D, warps);

/// wait_for_copies of a number of groups that is known only at run time, `most` or fewer.
template <int most>
__device__ __forceinline__ void wait_for_all_but(int groups) {
  if constexpr (most == 0) {
    wait_for_copies<0>();
  } else {
    if (groups < most) return wait_for_all_but<most - 1>(groups);
    wait_for_copies<most>();
  }
}

template <int D, int warps, bool with_dropout>
__global__ __launch_bounds__(kEntry<D, warps>.threads(), kEntry<D, warps>.blocks) void attention_forward_resident_kernel(
    AttentionProblem p,
    Heads<const bf16> q,  // (B, Tq, H, D)
    Heads<const bf16> k,  // (B, Tk, H, D)
    Heads<const bf16> v,  // (B, Tk, H, D)
    Heads<bf16> o,        // (B, Tq, H, D)
    float* lse) {         // (B, H, Tq) or null
  constexpr ForwardTile shape = kEntry<D, warps>;
  constexpr int kRows = kMmaM * shape.row_blocks;
  constexpr int kMostTiles = kMostResidentKeys / shape.tile;
  using QueryTile = Tile<D, kRows>;
  using KeyTile = Tile<D, shape.tile>;
  // In shared memory: each warp's queries, what they see, then keys and values in turn.
  constexpr int kSpans = warps * QueryTile::kBytes, kKeys = kSpans + shape.queries() * static_cast<int>(sizeof(Span));
  const auto key_tile = [](int tile) { return KeyTile(kKeys + 2 * tile * KeyTile::kBytes); };
  const auto value_tile = [](int tile) { return KeyTile(kKeys + (2 * tile + 1) * KeyTile::kBytes); };
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  const QueryTile query_tile(warp * QueryTile::kBytes);
  const auto spans = shared_array<Span>(kSpans + warp * kRows * static_cast<int>(sizeof(Span)), kRows);

  const int H = static_cast<int>(p.H), h = static_cast<int>(blockIdx.x) % H, b = static_cast<int>(blockIdx.x) / H;
  const int groups = static_cast<int>((p.Tq + kRows - 1) / kRows);
  const Span seen{span_of(p, b, 0).begin, span_of(p, b, p.Tq - 1).end};
  const int first_tile = seen.begin / shape.tile;
  const int tiles = seen.end > seen.begin ? (seen.end - 1) / shape.tile + 1 - first_tile : 0;
  const auto copy = [&](const KeyTile& to, const Heads<const bf16>& from, int tile) {
    copy_tile<shape.threads()>(to, from, b, h, (first_tile + tile) * shape.tile, seen.begin, seen.end);
  };

  // Of a causal head, the queries that see most come first; a warp whose first ones see more has others that see less.
  const auto query_of = [&](int turn) {
    const int number = turn * warps + (turn % 2 == 0 ? warp : warps - 1 - warp);
    return number < groups ? (p.causal ? groups - 1 - number : number) * kRows : static_cast<int>(p.Tq);
  };
  const auto copy_queries = [&](int first_query) {
    copy_tile<kWarp>(query_tile, q, b, h, first_query, 0, p.Tq, lane);
    fill_spans<kRows>(spans, p, b, first_query, lane);
  };

  // Groups of copies: queries and the first keys, the first values, and then each tile's keys and values.
  int first_query = query_of(0);
  copy_queries(first_query);
#pragma unroll 1
  for (int tile = 0; tile < kMostTiles; ++tile) {
    if (tile < tiles) copy(key_tile(tile), k, tile);
    if (tile == 0) commit_copies();
    if (tile < tiles) copy(value_tile(tile), v, tile);
    commit_copies();
  }
  wait_for_copies<kMostTiles>();
  __syncthreads();
#pragma unroll 1
  for (int turn = 0;;) {
    Queries<D, shape.row_blocks, with_dropout> queries(p, b, h, first_query, query_tile, 0, spans);
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      if (turn == 0 && tile > 0) {
        wait_for_all_but<kMostTiles - 2>(kMostTiles - 1 - tile);
        __syncthreads();  // all have copied this tile
      }
      queries.template attend<shape.slice>((first_tile + tile) * shape.tile, key_tile(tile), value_tile(tile), [&] {
        if (turn > 0 || tile > 0) return;
        wait_for_copies<kMostTiles - 1>();
        __syncthreads();
      });
    }
    queries.store(o, lse, b, h, first_query, query_tile);
    first_query = query_of(++turn);
    if (first_query >= p.Tq) break;
    __syncwarp();  // what was stored has left the tile
    copy_queries(first_query);
    commit_copies();
    wait_for_copies<0>();
    __syncwarp();
  }
  wait_for_copies<0>();
}

/// Whether some entry from `at` on serves: runs the first.
template <int at>
bool run(const Context& context, const AttentionForward& op) {
  if constexpr (at == static_cast<int>(std::size(kResidentTiles))) {
    return false;
  } else {
    constexpr ForwardTile shape = kResidentTiles[at];
    const AttentionProblem& p = op.problem;
    const int tiles = static_cast<int>((p.Tk + shape.tile - 1) / shape.tile);
    if (p.D != shape.head_size || !shape.fits(tiles, context.shared_bytes)) return run<at + 1>(context, op);
    launch({.kernel = "attention_forward_resident",
            .grid = static_cast<unsigned>(p.B * p.H),
            .block = shape.threads(),
            .shared_bytes = static_cast<std::size_t>(shape.shared_bytes(tiles)),
            .stream = context.stream},
           p.dropout ? attention_forward_resident_kernel<shape.head_size, shape.warps, true>
                     : attention_forward_resident_kernel<shape.head_size, shape.warps, false>,
           p, heads<bf16>(op.q), heads<bf16>(op.k), heads<bf16>(op.v), heads<bf16>(op.o), static_cast<float*>(op.lse.data));
    return true;
  }
}

}  // namespace

bool attention_forward_resident(const Context& context, const AttentionForward& op) {
  const AttentionProblem& p = op.problem;
  if (p.Tk < kLeastResidentKeys || p.Tk > kMostResidentKeys) return false;
  if (p.B * p.H < context.multiprocessors) return false;  // blocks of a whole head would leave some idle
  return run<0>(context, op);
}

}  // namespace outeffhop::cuda
