// Attention with each stage in memory, for a block of query rows: what a visitor of scores or probabilities sees. Same
// products and the same n rules as the fused form; speed matters less here.
#include "kernels/cpu/simd/attention.h"
#include "kernels/cpu/simd/attention_rows.h"
#include "kernels/cpu/simd/softmax_math.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

namespace {

struct ObservedScratch {
  float* transposed_keys;
  float* values;
  float* strip;
  float* rows;    ///< (kQueryRows, Dp): queries or outputs
  float* row;     ///< (Tk): one row of logits
  float* matrix;  ///< (kQueryRows, kKeys)
  std::int64_t size;

  ObservedScratch(const AttentionProblem& p, float* base) {
    const std::int64_t Dp = round_up(p.D, W);
    Carver take{base};
    transposed_keys = take(transposed_size(p.Tk, p.D));
    values = take(p.Tk * Dp);
    strip = take(W * Dp);
    rows = take(kQueryRows * Dp);
    row = take(p.Tk + W);
    matrix = take(kQueryRows * kKeys);
    size = take.used;
  }
};

/// `count` elements of a contiguous tensor from element `offset`, to or from fp32.
static inline void load_elements(const ConstTensor& tensor, std::int64_t offset, std::int64_t count, float* to) {
  const auto read = [&](const auto* from) {
    for (std::int64_t i = 0; i + W <= count; i += W) store(to + i, load(from + i));
    const std::int64_t whole = count / W * W;
    if (whole < count) store(to + whole, load_part(from + whole, count - whole));
  };
  tensor.dtype == DType::f32 ? read(static_cast<const float*>(tensor.data) + offset)
                             : read(static_cast<const bf16*>(tensor.data) + offset);
}
static inline void store_elements(const Tensor& tensor, std::int64_t offset, std::int64_t count, const float* from) {
  const auto write = [&](auto* to) {
    for (std::int64_t i = 0; i + W <= count; i += W) store(to + i, load(from + i));
    const std::int64_t whole = count / W * W;
    if (whole < count) store_part(to + whole, load(from + whole), count - whole);
  };
  tensor.dtype == DType::f32 ? write(static_cast<float*>(tensor.data) + offset)
                             : write(static_cast<bf16*>(tensor.data) + offset);
}

/// Calls visit(b, h, first row within the block, rows) for this part's blocks of rows; enter(b, h) before the first of a
/// head.
template <class Enter, class Visit>
static inline void for_each_row_block(const AttentionProblem& p, std::int64_t rows, int part, int parts, const Enter& enter,
                                      const Visit& visit) {
  const std::int64_t blocks = blocks_of(rows, kQueryRows);
  const Share share(p.B * p.H * blocks, part, parts);
  std::int64_t entered = -1;
  for (std::int64_t item = share.begin; item < share.end; ++item) {
    const std::int64_t head = item / blocks, b = head / p.H, h = head % p.H, begin = item % blocks * kQueryRows;
    if (head != entered) enter(b, h);
    entered = head;
    visit(b, h, begin, smaller(kQueryRows, rows - begin));
  }
}

}  // namespace

std::int64_t attention_observed_scratch(const AttentionProblem& problem) { return ObservedScratch(problem, nullptr).size; }

void attention_scores(const AttentionScores& op, int part, int parts, float* base) {
  const AttentionProblem& p = op.problem;
  const ObservedScratch scratch(p, base);
  const std::int64_t Dp = round_up(p.D, W);
  for_each_row_block(
      p, op.rows, part, parts,
      [&](std::int64_t b, std::int64_t h) {
        load_transposed(op.k, b, h, 0, p.Tk, p.D, scratch.strip, scratch.transposed_keys);
      },
      [&](std::int64_t b, std::int64_t h, std::int64_t begin, std::int64_t rows) {
        load_rows(op.q, b, h, op.row_begin + begin, rows, p.D, p.scale, scratch.rows);
        for (std::int64_t key = 0; key < p.Tk; key += kKeys) {
          const std::int64_t count = smaller(kKeys, p.Tk - key);
          RightOperand right = panels(scratch.transposed_keys, Dp);
          right.data += key / kPanel * right.panel_stride;
          product<false>(rows, round_up(count, W), Dp, scratch.rows, Dp, right, scratch.matrix, kKeys, false);
          for (std::int64_t row = 0; row < rows; ++row)
            store_elements(op.scores, ((b * p.H + h) * op.rows + begin + row) * p.Tk + key, count,
                           scratch.matrix + row * kKeys);
        }
      });
}

void attention_probabilities(const AttentionProbabilities& op, int part, int parts, float* base) {
  const AttentionProblem& p = op.problem;
  const ObservedScratch scratch(p, base);
  const SoftmaxStart start = softmax_start(p);
  float* s = scratch.row;
  const auto one_row = [&](std::int64_t b, std::int64_t h, std::int64_t row) {
    const std::int64_t offset = ((b * p.H + h) * op.rows + row) * p.Tk;
    load_elements(op.scores, offset, p.Tk, s);
    const std::int64_t visible = hide_keys_before(visible_keys(p, b, op.row_begin + row), 0, p.Tk, s);
    constexpr std::int64_t N = kNativeLanes;
    NativeVector maxima = broadcast(start.maximum);
    for (std::int64_t j = 0; j < visible; j += N)
      maxima = larger_of(maxima, first_lanes(load_native(s + j), visible - j, kNoMaximum));
    const NativeVector maximum = broadcast(largest_lane(maxima));
    NativeVector sums = {};
    for (std::int64_t j = 0; j < p.Tk; j += N) {
      const NativeVector e =
          j < visible ? first_lanes(exp_of_difference(load_native(s + j) - maximum), visible - j, 0.0f) : NativeVector{};
      sums += e;
      store_native(s + j, e);
    }
    // What n adds to the denominator: exp(log n - maximum) <= 1.
    float total = sum_of_lanes(sums);
    if (start.sum > 0.0f) total += exp_of_difference(broadcast(start.maximum) - maximum)[0];
    const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
    for (std::int64_t j = 0; j < p.Tk; j += W) store(s + j, load(s + j) * inverse);
    store_elements(op.probabilities, offset, p.Tk, s);
  };
  for_each_row_block(
      p, op.rows, part, parts, [](std::int64_t, std::int64_t) {},
      [&](std::int64_t b, std::int64_t h, std::int64_t begin, std::int64_t rows) {
        for (std::int64_t row = begin; row < begin + rows; ++row) one_row(b, h, row);
      });
}

void attention_context(const AttentionContext& op, int part, int parts, float* base) {
  const AttentionProblem& p = op.problem;
  const ObservedScratch scratch(p, base);
  const std::int64_t Dp = round_up(p.D, W);
  for_each_row_block(
      p, op.rows, part, parts,
      [&](std::int64_t b, std::int64_t h) { load_rows(op.v, b, h, 0, p.Tk, p.D, 1.0f, scratch.values); },
      [&](std::int64_t b, std::int64_t h, std::int64_t begin, std::int64_t rows) {
        for (std::int64_t i = 0; i < rows * Dp; i += W) store(scratch.rows + i, vf{});
        for (std::int64_t key = 0; key < p.Tk; key += kKeys) {
          const std::int64_t count = smaller(kKeys, p.Tk - key);
          for (std::int64_t row = 0; row < rows; ++row)
            load_elements(op.probabilities, ((b * p.H + h) * op.rows + begin + row) * p.Tk + key, count,
                          scratch.matrix + row * kKeys);
          product<false>(rows, Dp, count, scratch.matrix, kKeys, row_major(scratch.values + key * Dp, Dp), scratch.rows, Dp,
                         true);
        }
        store_rows(op.o, b, h, op.row_begin + begin, rows, p.D, 1.0f, false, scratch.rows);
      });
}

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
