// Flash attention on the CPU, backward. Probabilities are recomputed from the log-sum-exp, tile by tile of (query block, key
// block), and five products of register tiles follow. One thread owns a head, so that all three gradients come from one
// pass, without atomics. Where heads are fewer than threads, a head is cut instead: by keys for d_k and d_v, by queries for
// d_q; tiles seen by both are computed twice, and every sum keeps its order, so the bits do not change.
#include "kernels/cpu/simd/attention.h"
#include "kernels/cpu/simd/attention_rows.h"
#include "kernels/cpu/simd/philox.h"
#include "kernels/cpu/simd/softmax_math.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

namespace {

static_assert(kKeys == kPhiloxColumns);

/// One head in fp32. Rows are padded to Dp = round_up(D, 16) floats with zeros.
struct BackwardScratch {
  float *queries, *d_outputs;                         ///< (Tq, Dp); queries times scale
  float *keys, *transposed_keys, *transposed_values;  ///< (Tk, Dp), panels, panels
  float *d_queries, *d_keys, *d_values;               ///< sums, (T, Dp)
  float* output_products;                             ///< (Tq): D_i = d_o_i . o_i
  float *probabilities, *d_logits;                    ///< a tile, (kQueryRows, kKeys)
  float* strip;                                       ///< 16 rows
  std::int64_t size;

  BackwardScratch(const AttentionProblem& p, float* base) {
    const std::int64_t Dp = round_up(p.D, W);
    Carver take{base};
    queries = take(p.Tq * Dp);
    d_outputs = take(p.Tq * Dp);
    keys = take(p.Tk * Dp);
    transposed_keys = take(transposed_size(p.Tk, p.D));
    transposed_values = take(transposed_size(p.Tk, p.D));
    d_queries = take(p.Tq * Dp);
    d_keys = take(p.Tk * Dp);
    d_values = take(p.Tk * Dp);
    output_products = take(p.Tq);
    probabilities = take(kQueryRows * kKeys);
    d_logits = take(kQueryRows * kKeys);
    strip = take(W * Dp);
    size = take.used;
  }
};

/// Blocks [begin, end) of queries or of keys.
struct Blocks {
  std::int64_t begin = 0, end = 0;
  bool empty() const { return begin >= end; }
};

/// Which sums a pass over tiles feeds.
struct Wanted {
  bool d_q, d_k, d_v;
};

/// In: logits and d_o v^T. Out: dropped probabilities, and d logits / scale.
static inline void softmax_backward(const AttentionProblem& p, std::int64_t b, std::int64_t h, std::int64_t query,
                                    std::int64_t rows, std::int64_t key, std::int64_t columns, const float* lse,
                                    const BackwardScratch& scratch) {
  constexpr std::int64_t N = kNativeLanes;
  std::uint16_t bits[kKeys];
  const bool drops = p.dropout.threshold != 0;
  const std::uint64_t sample = drops ? p.dropout.sample_ids[b] : 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    float* s = scratch.probabilities + row * kKeys;
    float* ds = scratch.d_logits + row * kKeys;
    const std::int64_t visible = hide_keys_before(visible_keys(p, b, query + row), key, columns, s);
    if (drops && visible > 0)
      philox_bits_tiled(p.dropout.key, sample, static_cast<std::uint32_t>(h * p.Tq + query + row), key, visible, bits);
    const NativeVector log_sum = broadcast(lse[query + row]),
                       output_product = broadcast(scratch.output_products[query + row]);
    std::int64_t j = 0;
    for (; j < visible; j += N) {
      NativeVector probability = exp_of_difference(load_native(s + j) - log_sum);
      if (j + N > visible) probability = first_lanes(probability, visible - j, 0.0f);
      if (drops) {
        const NativeVector kept = kept_scale(bits + j, p.dropout.threshold, p.dropout.scale);
        store_native(s + j, probability * kept);
        store_native(ds + j, probability * (kept * load_native(ds + j) - output_product));
      } else {
        store_native(s + j, probability);
        store_native(ds + j, probability * (load_native(ds + j) - output_product));
      }
    }
    for (; j < columns; j += N) {
      store_native(s + j, NativeVector{});
      store_native(ds + j, NativeVector{});
    }
  }
}

/// One tile: query block x key block of the head in scratch, less the keys at either end that none of the rows sees.
static inline void backward_tile(const AttentionBackward& op, std::int64_t b, std::int64_t h, std::int64_t query_block,
                                 std::int64_t key_block, Wanted wanted, const BackwardScratch& scratch) {
  const AttentionProblem& p = op.problem;
  const std::int64_t Dp = round_up(p.D, W);
  const std::int64_t query = query_block * kQueryRows, rows = smaller(kQueryRows, p.Tq - query);
  const KeyRange seen = keys_of_rows(p, b, query, query + rows - 1);
  const std::int64_t key = larger(key_block * kKeys, seen.begin);
  const std::int64_t count = smaller((key_block + 1) * kKeys, seen.end) - key, columns = round_up(count, W);
  if (count <= 0) return;

  const float* lse = static_cast<const float*>(op.lse.data) + (b * p.H + h) * p.Tq;
  const float* queries = scratch.queries + query * Dp;
  const float* d_outputs = scratch.d_outputs + query * Dp;
  RightOperand keys = panels(scratch.transposed_keys, Dp), values = panels(scratch.transposed_values, Dp);
  keys.data += key / kPanel * keys.panel_stride;
  values.data += key / kPanel * values.panel_stride;
  product<false>(rows, columns, Dp, queries, Dp, keys, scratch.probabilities, kKeys, false);
  product<false>(rows, columns, Dp, d_outputs, Dp, values, scratch.d_logits, kKeys, false);
  softmax_backward(p, b, h, query, rows, key, columns, lse, scratch);

  if (wanted.d_v)
    product<true>(count, Dp, rows, scratch.probabilities, kKeys, row_major(d_outputs, Dp), scratch.d_values + key * Dp, Dp,
                  true);
  if (wanted.d_k)
    product<true>(count, Dp, rows, scratch.d_logits, kKeys, row_major(queries, Dp), scratch.d_keys + key * Dp, Dp, true);
  if (wanted.d_q)
    product<false>(rows, Dp, count, scratch.d_logits, kKeys, row_major(scratch.keys + key * Dp, Dp),
                   scratch.d_queries + query * Dp, Dp, true);
}

/// out[i] = a_i . b_i of each row, summed over d as the tiles of d_o v^T are: where a row sees one key and n is 0, so that o
/// is that key's value, d_o v^T - D cancels exactly. Eight rows side by side hide the latency of the sums.
static inline void row_products(const float* a, const float* b, std::int64_t rows, std::int64_t Dp, float* out) {
  constexpr std::int64_t kTogether = 8;
  std::int64_t row = 0;
  for (; row + kTogether <= rows; row += kTogether) {
    float sums[kTogether] = {};
    for (std::int64_t d = 0; d < Dp; ++d)
      for (std::int64_t r = 0; r < kTogether; ++r)
        sums[r] = multiply_add(a[(row + r) * Dp + d], b[(row + r) * Dp + d], sums[r]);
    for (std::int64_t r = 0; r < kTogether; ++r) out[row + r] = sums[r];
  }
  for (; row < rows; ++row) {
    float sum_of_row = 0.0f;
    for (std::int64_t d = 0; d < Dp; ++d) sum_of_row = multiply_add(a[row * Dp + d], b[row * Dp + d], sum_of_row);
    out[row] = sum_of_row;
  }
}

static inline void clear(float* rows, std::int64_t begin, std::int64_t end, std::int64_t Dp) {
  for (std::int64_t i = begin * Dp; i < end * Dp; i += W) store(rows + i, vf{});
}

/// Head h of samples [sample_begin, sample_end), in order: all tiles of the query blocks x key blocks. A gradient that the
/// batch shares is written after the last sample.
static inline void backward_head(const AttentionBackward& op, std::int64_t h, std::int64_t sample_begin,
                                 std::int64_t sample_end, Blocks query_blocks, Blocks key_blocks, Wanted wanted,
                                 const BackwardScratch& scratch) {
  const AttentionProblem& p = op.problem;
  const std::int64_t Dp = round_up(p.D, W);
  const std::int64_t query_begin = query_blocks.begin * kQueryRows, query_end = smaller(p.Tq, query_blocks.end * kQueryRows);
  const std::int64_t key_begin = key_blocks.begin * kKeys, key_end = smaller(p.Tk, key_blocks.end * kKeys);
  for (std::int64_t b = sample_begin; b < sample_end; ++b) {
    const bool first = b == sample_begin, last = b + 1 == sample_end;
    if (wanted.d_q && (first || op.d_q.batch_stride != 0)) clear(scratch.d_queries, query_begin, query_end, Dp);
    if (wanted.d_k && (first || op.d_k.batch_stride != 0)) clear(scratch.d_keys, key_begin, key_end, Dp);
    if (wanted.d_v && (first || op.d_v.batch_stride != 0)) clear(scratch.d_values, key_begin, key_end, Dp);

    // What nobody sees is not even read.
    const KeyRange seen = query_begin < query_end ? keys_of_rows(p, b, query_begin, query_end - 1) : KeyRange{0, 0};
    const std::int64_t first_key = larger(key_begin, seen.begin), keys = smaller(key_end, seen.end) - first_key;
    if (keys > 0) {
      const std::int64_t queries = query_end - query_begin;
      load_rows(op.q, b, h, query_begin, queries, p.D, p.scale, scratch.queries + query_begin * Dp);
      load_rows(op.d_o, b, h, query_begin, queries, p.D, 1.0f, scratch.d_outputs + query_begin * Dp);
      for (std::int64_t i = query_begin; i < query_end; i += W) {
        const std::int64_t rows = smaller(W, query_end - i);
        load_rows(op.o, b, h, i, rows, p.D, 1.0f, scratch.strip);
        row_products(scratch.d_outputs + i * Dp, scratch.strip, rows, Dp, scratch.output_products + i);
      }
      load_transposed(op.k, b, h, first_key, keys, p.D, scratch.strip, scratch.transposed_keys);
      load_transposed(op.v, b, h, first_key, keys, p.D, scratch.strip, scratch.transposed_values);
      if (wanted.d_q) load_rows(op.k, b, h, first_key, keys, p.D, 1.0f, scratch.keys + first_key * Dp);
      for (std::int64_t key_block = key_blocks.begin; key_block < key_blocks.end; ++key_block)
        for (std::int64_t query_block = query_blocks.begin; query_block < query_blocks.end; ++query_block)
          backward_tile(op, b, h, query_block, key_block, wanted, scratch);
    }

    if (wanted.d_q && (last || op.d_q.batch_stride != 0))
      store_rows(op.d_q, b, h, query_begin, query_end - query_begin, p.D, p.scale, op.accumulate_d_q,
                 scratch.d_queries + query_begin * Dp);
    if (wanted.d_k && (last || op.d_k.batch_stride != 0))
      store_rows(op.d_k, b, h, key_begin, key_end - key_begin, p.D, 1.0f, op.accumulate_d_k,
                 scratch.d_keys + key_begin * Dp);
    if (wanted.d_v && (last || op.d_v.batch_stride != 0))
      store_rows(op.d_v, b, h, key_begin, key_end - key_begin, p.D, 1.0f, op.accumulate_d_v,
                 scratch.d_values + key_begin * Dp);
  }
}

}  // namespace

std::int64_t attention_backward_scratch(const AttentionProblem& problem) { return BackwardScratch(problem, nullptr).size; }

void attention_backward(const AttentionBackward& op, int part, int parts, float* base) {
  const AttentionProblem& p = op.problem;
  const BackwardScratch scratch(p, base);
  const Wanted wanted = {op.d_q.data != nullptr, op.d_k.data != nullptr, op.d_v.data != nullptr};
  const bool wants_keys = wanted.d_k || wanted.d_v;
  const Blocks queries = {0, blocks_of(p.Tq, kQueryRows)}, keys = {0, blocks_of(p.Tk, kKeys)};

  // A group is what one thread takes as a whole: a head, with all its samples where the batch shares a gradient.
  const bool shared = (wanted.d_q && op.d_q.batch_stride == 0) || (wanted.d_k && op.d_k.batch_stride == 0) ||
                      (wanted.d_v && op.d_v.batch_stride == 0);
  const std::int64_t samples = shared ? p.B : 1, groups = shared ? p.H : p.B * p.H;
  const auto group_of = [&](std::int64_t group) {
    struct {
      std::int64_t h, sample_begin;
    } of = {group % p.H, shared ? 0 : group / p.H};
    return of;
  };
  const auto keys_seen = [&](std::int64_t b, std::int64_t query_block) {
    return keys_of_rows(p, b, query_block * kQueryRows, smaller(p.Tq, (query_block + 1) * kQueryRows) - 1);
  };

  // Cutting heads costs seven products instead of five: worth it where whole heads keep under 5/7 of the threads busy.
  const bool cut = groups * 7 < parts * blocks_of(groups, parts) * 5;
  if (!cut) {
    const auto cost = [&](std::int64_t first_sample) {
      std::int64_t sum_of_keys = 0;
      for (std::int64_t b = first_sample; b < first_sample + samples; ++b)
        for (std::int64_t block = 0; block < queries.end; ++block) sum_of_keys += keys_seen(b, block).count() + 16;
      return sum_of_keys + 1;
    };
    std::int64_t total = 0;
    for (std::int64_t b = 0; b < p.B; b += samples) total += p.H * cost(b);
    const Share share(total, part, parts);
    std::int64_t start = 0, cost_of_sample = 0;
    for (std::int64_t group = 0; group < groups; start += cost_of_sample, ++group) {
      const auto of = group_of(group);
      if (of.h == 0) cost_of_sample = cost(of.sample_begin);
      if (share.holds(start))
        backward_head(op, of.h, of.sample_begin, of.sample_begin + samples, queries, keys, wanted, scratch);
    }
    return;
  }

  // Items of a group: its key blocks at four products a tile, then its query blocks at three.
  const auto cost_of_keys = [&](std::int64_t first_sample, std::int64_t key_block) {
    std::int64_t tiles = 1;
    for (std::int64_t b = first_sample; b < first_sample + samples; ++b)
      for (std::int64_t block = 0; block < queries.end; ++block) {
        const KeyRange seen = keys_seen(b, block);
        tiles += larger(seen.begin, key_block * kKeys) < smaller(seen.end, (key_block + 1) * kKeys);
      }
    return wants_keys ? 4 * tiles : 0;
  };
  const auto cost_of_queries = [&](std::int64_t first_sample, std::int64_t query_block) {
    std::int64_t tiles = 1;
    for (std::int64_t b = first_sample; b < first_sample + samples; ++b) {
      const KeyRange seen = keys_seen(b, query_block);
      if (seen.count() > 0) tiles += blocks_of(seen.end, kKeys) - seen.begin / kKeys;
    }
    return wanted.d_q ? 3 * tiles : 0;
  };
  std::int64_t total = 0;
  for (std::int64_t group = 0; group < groups; ++group) {
    const auto of = group_of(group);
    for (std::int64_t block = 0; block < keys.end; ++block) total += cost_of_keys(of.sample_begin, block);
    for (std::int64_t block = 0; block < queries.end; ++block) total += cost_of_queries(of.sample_begin, block);
  }
  const Share share(total, part, parts);
  std::int64_t start = 0;
  // The contiguous run of `all` whose starts lie in the share.
  const auto mine = [&](Blocks all, std::int64_t first_sample, const auto& cost) {
    Blocks run = {0, 0};
    for (std::int64_t block = all.begin; block < all.end; ++block) {
      if (share.holds(start)) {
        if (run.empty()) run.begin = block;
        run.end = block + 1;
      }
      start += cost(first_sample, block);
    }
    return run;
  };
  for (std::int64_t group = 0; group < groups; ++group) {
    const auto of = group_of(group);
    const Blocks my_keys = mine(keys, of.sample_begin, cost_of_keys);
    if (wants_keys && !my_keys.empty())
      backward_head(op, of.h, of.sample_begin, of.sample_begin + samples, queries, my_keys, {false, wanted.d_k, wanted.d_v},
                    scratch);
    const Blocks my_queries = mine(queries, of.sample_begin, cost_of_queries);
    if (wanted.d_q && !my_queries.empty())
      backward_head(op, of.h, of.sample_begin, of.sample_begin + samples, my_queries, keys, {true, false, false}, scratch);
  }
}

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
