// Flash attention on the CPU, forward (Dao et al. 2022): a block of query rows against blocks of keys, an online softmax
// between two products of register tiles. What a head needs more than once lies in fp32 scratch, O(T D): its keys
// transposed in panels, its values as rows.
#include "kernels/cpu/simd/attention.h"
#include "kernels/cpu/simd/attention_rows.h"
#include "kernels/cpu/simd/philox.h"
#include "kernels/cpu/simd/softmax_math.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

namespace {

static_assert(kKeys == kPhiloxColumns);

/// Running state of a block of query rows, in the caller's scratch.
struct QueryBlock {
  float* queries;  ///< (kQueryRows, Dp), times scale
  float* logits;   ///< (kQueryRows, kKeys), then the probabilities up to the factor exp(-maximum)
  float* outputs;  ///< (kQueryRows, Dp)
  float *maximum, *sum, *shrink, *block_value;  ///< (kQueryRows)
  KeyRange* visible;                            ///< (kQueryRows): the keys that each row sees
};

struct ForwardScratch {
  float* transposed_keys;
  float* values;
  float* strip;
  QueryBlock block;
  std::int64_t size;

  ForwardScratch(const AttentionProblem& p, float* base) {
    const std::int64_t Dp = round_up(p.D, W);
    Carver take{base};
    transposed_keys = take(transposed_size(p.Tk, p.D));
    values = take(p.Tk * Dp);
    strip = take(W * Dp);
    block.queries = take(kQueryRows * Dp);
    block.logits = take(kQueryRows * kKeys);
    block.outputs = take(kQueryRows * Dp);
    block.maximum = take(kQueryRows);
    block.sum = take(kQueryRows);
    block.shrink = take(kQueryRows);
    block.block_value = take(kQueryRows);
    block.visible = reinterpret_cast<KeyRange*>(take(kQueryRows * sizeof(KeyRange) / sizeof(float)));
    size = take.used;
  }
};

/// Logits of keys [begin, begin + columns) to probabilities up to exp(-maximum); maximum, sum and outputs move on.
static inline void online_softmax(const Dropout& dropout, std::uint64_t sample, std::int64_t first_row, std::int64_t rows,
                                  std::int64_t begin, std::int64_t columns, std::int64_t Dp, bool first,
                                  const QueryBlock& block) {
  constexpr std::int64_t N = kNativeLanes;
  std::int64_t visible_columns[kQueryRows];
  for (std::int64_t row = 0; row < rows; ++row) {
    float* s = block.logits + row * kKeys;
    const std::int64_t visible = visible_columns[row] = hide_keys_before(block.visible[row], begin, columns, s);
    NativeVector maximum = broadcast(kNoMaximum);
    std::int64_t j = 0;
    for (; j + N <= visible; j += N) maximum = larger_of(maximum, load_native(s + j));
    if (j < visible) maximum = larger_of(maximum, first_lanes(load_native(s + j), visible - j, kNoMaximum));
    block.block_value[row] = largest_lane(maximum);
  }
  for (std::int64_t row = 0; row < rows; row += N) {
    const NativeVector before = load_native(block.maximum + row);
    const NativeVector after = larger_of(before, load_native(block.block_value + row));
    store_native(block.maximum + row, after);
    store_native(block.shrink + row, exp_of_difference(before - after));
  }
  const bool drops = dropout.threshold != 0;
  std::uint16_t bits[kKeys];
  for (std::int64_t row = 0; row < rows; ++row) {
    float* s = block.logits + row * kKeys;
    const std::int64_t visible = visible_columns[row];
    const NativeVector maximum = broadcast(block.maximum[row]);
    NativeVector total = {};
    if (drops && visible > 0)
      philox_bits_tiled(dropout.key, sample, static_cast<std::uint32_t>(first_row + row), begin, visible, bits);
    std::int64_t j = 0;
    for (; j < visible; j += N) {
      NativeVector p = exp_of_difference(load_native(s + j) - maximum);
      if (j + N > visible) p = first_lanes(p, visible - j, 0.0f);
      total += p;
      store_native(s + j, drops ? p * kept_scale(bits + j, dropout.threshold, dropout.scale) : p);
    }
    for (; j < columns; j += N) store_native(s + j, NativeVector{});
    block.block_value[row] = sum_of_lanes(total);
    if (!first) {
      float* o = block.outputs + row * Dp;
      const float shrink = block.shrink[row];
      for (std::int64_t d = 0; d < Dp; d += N) store_native(o + d, load_native(o + d) * shrink);
    }
  }
  for (std::int64_t row = 0; row < rows; row += W)
    store(block.sum + row, load(block.sum + row) * load(block.shrink + row) + load(block.block_value + row));
}

/// Rows [begin, begin + rows) of head (b, h), whose keys and values lie packed in scratch.
static inline void query_block(const AttentionForward& op, std::int64_t b, std::int64_t h, std::int64_t begin,
                               std::int64_t rows, const ForwardScratch& scratch) {
  const AttentionProblem& p = op.problem;
  const QueryBlock& block = scratch.block;
  const std::int64_t Dp = round_up(p.D, W);
  const SoftmaxStart start = softmax_start(p);
  for (std::int64_t row = 0; row < kQueryRows; row += W) {
    store(block.maximum + row, splat(start.maximum));
    store(block.sum + row, splat(start.sum));
    store(block.block_value + row, splat(kNoMaximum));
  }
  for (std::int64_t row = 0; row < rows; ++row) block.visible[row] = visible_keys(p, b, begin + row);
  const KeyRange keys = keys_of_rows(p, b, begin, begin + rows - 1);
  const std::uint64_t sample = p.dropout.threshold != 0 ? p.dropout.sample_ids[b] : 0;

  prefetch_rows<true>(op.o, b, h, begin, rows, p.D);
  load_rows(op.q, b, h, begin, rows, p.D, p.scale, block.queries);
  if (keys.count() == 0)
    for (std::int64_t i = 0; i < rows * Dp; i += W) store(block.outputs + i, vf{});
  for (std::int64_t key = keys.begin; key < keys.end; key += kKeys) {
    const std::int64_t count = smaller(kKeys, keys.end - key), columns = round_up(count, W);
    RightOperand right = panels(scratch.transposed_keys, Dp);
    right.data += key / kPanel * right.panel_stride;
    product<false>(rows, columns, Dp, block.queries, Dp, right, block.logits, kKeys, false);
    online_softmax(p.dropout, sample, h * p.Tq + begin, rows, key, columns, Dp, key == keys.begin, block);
    product<false>(rows, Dp, count, block.logits, kKeys, row_major(scratch.values + key * Dp, Dp), block.outputs, Dp,
                   key > keys.begin);
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    const float total = block.sum[row];
    const float inverse = total > 0.0f || total != total ? 1.0f / total : 0.0f;
    float* o = block.outputs + row * Dp;
    for (std::int64_t d = 0; d < Dp; d += W) store(o + d, load(o + d) * inverse);
    if (op.lse.data) {
      float* lse = static_cast<float*>(op.lse.data) + (b * p.H + h) * p.Tq + begin;
      lse[row] = total == 0.0f ? 0.0f : block.maximum[row] + __builtin_logf(total);
    }
  }
  store_rows(op.o, b, h, begin, rows, p.D, 1.0f, false, block.outputs);
}

/// While block `block` of `blocks` of a head is computed: that share of what the next head will read, where it fits the
/// caches.
static inline void prefetch_next_head(const AttentionForward& op, std::int64_t b, std::int64_t h, std::int64_t block,
                                      std::int64_t blocks) {
  const AttentionProblem& p = op.problem;
  const std::int64_t next_h = h + 1 < p.H ? h + 1 : 0, next_b = next_h ? b : b + 1;
  if (next_b >= p.B || (p.Tq + 2 * p.Tk) * p.D > kPrefetchedElements) return;
  const std::int64_t query = p.Tq * block / blocks, queries = p.Tq * (block + 1) / blocks - query;
  const std::int64_t key = p.Tk * block / blocks, keys = p.Tk * (block + 1) / blocks - key;
  prefetch_rows<false>(op.k, next_b, next_h, key, keys, p.D);
  prefetch_rows<false>(op.v, next_b, next_h, key, keys, p.D);
  prefetch_rows<false>(op.q, next_b, next_h, query, queries, p.D);
}

}  // namespace

std::int64_t attention_forward_scratch(const AttentionProblem& problem) { return ForwardScratch(problem, nullptr).size; }

void attention_forward(const AttentionForward& op, int part, int parts, float* base) {
  const AttentionProblem& p = op.problem;
  const ForwardScratch scratch(p, base);
  const std::int64_t Dp = round_up(p.D, W);
  const std::int64_t blocks = blocks_of(p.Tq, kQueryRows);
  const auto last_row = [&p](std::int64_t block) { return smaller(p.Tq, (block + 1) * kQueryRows) - 1; };
  const auto keys_of = [&](std::int64_t b, std::int64_t block) {
    return keys_of_rows(p, b, block * kQueryRows, last_row(block));
  };
  const auto cost = [&](std::int64_t b, std::int64_t block) { return keys_of(b, block).count() + 16; };
  std::int64_t total = 0;
  for (std::int64_t b = 0; b < p.B; ++b)
    for (std::int64_t block = 0; block < blocks; ++block) total += p.H * cost(b, block);

  const Share share(total, part, parts);
  std::int64_t start = 0;
  for (std::int64_t b = 0; b < p.B; ++b) {
    for (std::int64_t h = 0; h < p.H; ++h) {
      std::int64_t packed = 0;  // the keys before this one that the blocks still need lie in scratch
      for (std::int64_t block = 0; block < blocks; start += cost(b, block), ++block) {
        if (!share.holds(start)) continue;
        const std::int64_t begin = block * kQueryRows, rows = last_row(block) + 1 - begin;
        const KeyRange keys = keys_of(b, block);
        packed = larger(packed, keys.begin);
        if (packed < keys.end) {
          const std::int64_t from = packed / W * W;  // the last strip may have been cut short
          load_transposed(op.k, b, h, from, keys.end - from, p.D, scratch.strip, scratch.transposed_keys);
          load_rows(op.v, b, h, packed, keys.end - packed, p.D, 1.0f, scratch.values + packed * Dp);
          packed = keys.end;
        }
        prefetch_next_head(op, b, h, block, blocks);
        query_block(op, b, h, begin, rows, scratch);
      }
    }
  }
}

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
