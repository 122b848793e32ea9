// AttentionForward in bf16 on tensor cores: flash attention (Dao et al. 2022) whose first key is the normaliser's constant.
//
// Reads q once, k and v once for each block of queries (from L2 but for the first), writes o. Queries and scores stay in
// registers; keys and values come through two buffers of shared memory, the next tile while this one is worked on, with one
// barrier a tile. Of the first tile the keys are waited for alone.
//
// What a query sees is one run of keys whose ends never fall from one query to the next: the block visits the tiles from its
// first query's first key to its last query's last, and a warp those of their slices that its own queries see. Slices that
// all of them see whole are not masked.
#include <iterator>

#include "kernels/cuda/attention_forward_queries.cuh"
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/attention_tile_table.h"
#include "kernels/cuda/launch.cuh"

namespace outeffhop::cuda {
namespace {

template <int D, int warps>
constexpr ForwardTile kEntry = entry_of(kForwardTiles, D, warps);

template <int D, int warps, bool with_dropout>
__global__ __launch_bounds__(kEntry<D, warps>.threads(), kEntry<D, warps>.blocks) void attention_forward_tensor_kernel(
    AttentionProblem p,
    Heads<const bf16> q,  // (B, Tq, H, D)
    Heads<const bf16> k,  // (B, Tk, H, D)
    Heads<const bf16> v,  // (B, Tk, H, D)
    Heads<bf16> o,        // (B, Tq, H, D)
    float* lse) {         // (B, H, Tq) or null
  constexpr ForwardTile shape = kEntry<D, warps>;
  constexpr int kQueries = shape.queries(), kThreads = shape.threads();
  using QueryTile = Tile<D, kQueries>;
  using KeyTile = Tile<D, shape.tile>;
  const QueryTile query_tile(0);
  const auto key_tile = [](int buffer) { return KeyTile(QueryTile::kBytes + 2 * buffer * KeyTile::kBytes); };
  const auto value_tile = [](int buffer) { return KeyTile(QueryTile::kBytes + (2 * buffer + 1) * KeyTile::kBytes); };
  const auto spans = shared_array<Span>(QueryTile::kBytes + 4 * KeyTile::kBytes, kQueries);

  const int blocks_a_head = static_cast<int>((p.Tq + kQueries - 1) / kQueries), H = static_cast<int>(p.H);
  const int head = static_cast<int>(blockIdx.x) / blocks_a_head, h = head % H, b = head / H;
  // Of a causal head, the block that sees most keys comes first: the last ones to run are short.
  const int number = static_cast<int>(blockIdx.x) % blocks_a_head;
  const int first_query = (p.causal ? blocks_a_head - 1 - number : number) * kQueries;
  const int last_query = static_cast<int>(min(std::int64_t{first_query} + kQueries, p.Tq)) - 1;
  const Span seen{span_of(p, b, first_query).begin, span_of(p, b, last_query).end};
  const int first_tile = seen.begin / shape.tile;
  const int tiles = seen.end > seen.begin ? (seen.end - 1) / shape.tile + 1 - first_tile : 0;
  const auto copy = [&](const KeyTile& to, const Heads<const bf16>& from, int tile) {
    copy_tile<kThreads>(to, from, b, h, (first_tile + tile) * shape.tile, seen.begin, seen.end);
  };

  copy_tile<kThreads>(query_tile, q, b, h, first_query, 0, p.Tq);
  if (tiles > 0) copy(key_tile(0), k, 0);
  commit_copies();
  if (tiles > 0) copy(value_tile(0), v, 0);
  commit_copies();
  fill_spans<kQueries>(spans, p, b, first_query);
  wait_for_copies<1>();
  __syncthreads();

  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * kMmaM * shape.row_blocks;
  Queries<D, shape.row_blocks, with_dropout> queries(p, b, h, first_query + warp_row, query_tile, warp_row, spans);
  for (int tile = 0; tile < tiles; ++tile) {
    const int buffer = tile % 2;
    if (tile > 0) {
      wait_for_copies<0>();
      __syncthreads();  // all have copied this tile, and nobody reads the last one any more
    }
    if (tile + 1 < tiles) {
      copy(key_tile(1 - buffer), k, tile + 1);
      copy(value_tile(1 - buffer), v, tile + 1);
    }
    commit_copies();
    queries.template attend<shape.slice>((first_tile + tile) * shape.tile, key_tile(buffer), value_tile(buffer), [&] {
      if (tile > 0) return;
      wait_for_copies<1>();
      __syncthreads();
    });
  }
  wait_for_copies<0>();
  queries.store(o, lse, b, h, first_query + warp_row, query_tile);
}

/// Whether some entry from `at` on serves: runs the first.
template <int at>
bool run(const Context& context, const AttentionForward& op) {
  if constexpr (at == static_cast<int>(std::size(kForwardTiles))) {
    return false;
  } else {
    constexpr ForwardTile shape = kForwardTiles[at];
    const AttentionProblem& p = op.problem;
    if (p.D != shape.head_size || context.shared_bytes < shape.shared_bytes(2)) return run<at + 1>(context, op);
    launch({.kernel = "attention_forward_tensor",
            .grid = blocks_for(p.Tq, shape.queries()) * static_cast<unsigned>(p.B * p.H),
            .block = shape.threads(),
            .shared_bytes = shape.shared_bytes(2),
            .stream = context.stream},
           p.dropout ? attention_forward_tensor_kernel<shape.head_size, shape.warps, true>
                     : attention_forward_tensor_kernel<shape.head_size, shape.warps, false>,
           p, heads<bf16>(op.q), heads<bf16>(op.k), heads<bf16>(op.v), heads<bf16>(op.o), static_cast<float*>(op.lse.data));
    return true;
  }
}

}  // namespace

bool attention_forward_tensor(const Context& context, const AttentionForward& op) {
  if (op.q.dtype != DType::bf16) return false;
  for (const ConstHeadView& view : {op.q, op.k, op.v, ConstHeadView(op.o)})
    if (!vectors_aligned(view)) return false;
  return attention_forward_resident(context, op) || run<0>(context, op);
}

}  // namespace outeffhop::cuda
