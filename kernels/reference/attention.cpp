#include "kernels/attention.h"

#include <limits>

#include "kernels/reference/ops.h"
#include "kernels/reference/values.h"

namespace outeffhop::reference {
namespace {

bool visible(const AttentionProblem& p, std::int64_t b, std::int64_t i, std::int64_t j) {
  if (p.causal && j > i + p.causal_offset) return false;
  if (p.key_ranges) {
    const std::int32_t* range = p.key_ranges + (b * p.Tq + i) * 2;
    if (j < range[0] || j >= range[1]) return false;
  }
  return !p.key_lengths || j < p.key_lengths[b];
}

/// What dropout multiplies p by: 0, the scale, or 1 without dropout.
template <class Real>
Real probability_factor(const AttentionProblem& p, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
  if (!p.dropout) return Real(1);
  const auto bits = dropout_bits_tiled(p.dropout.key, p.dropout.sample_ids[b], static_cast<std::uint32_t>(h * p.Tq + i),
                                       static_cast<std::uint32_t>(j));
  return bits < p.dropout.threshold ? Real(0) : Real(p.dropout.scale);
}

/// Turns the scores of one query into its probabilities, in place; returns its LSE. Row i of batch b, Tk scores.
template <class Real>
Real softmax(const AttentionProblem& p, std::int64_t b, std::int64_t i, std::vector<Real>& row) {
  const bool says_nothing = p.n > 0;  // may put its weight on the constant n, as on a key with logit log n and value 0
  Real maximum = says_nothing ? std::log(Real(p.n)) : -std::numeric_limits<Real>::infinity();
  bool any = says_nothing;
  for (std::int64_t j = 0; j < p.Tk; ++j)
    if (visible(p, b, i, j)) {
      maximum = std::max(maximum, row[j]);
      any = true;
    }
  Real sum = says_nothing ? std::exp(std::log(Real(p.n)) - maximum) : Real(0);
  for (std::int64_t j = 0; j < p.Tk; ++j) {
    row[j] = visible(p, b, i, j) ? std::exp(row[j] - maximum) : Real(0);
    sum += row[j];
  }
  if (!any) return Real(0);
  for (std::int64_t j = 0; j < p.Tk; ++j) row[j] /= sum;
  return maximum + std::log(sum);
}

/// Dense (B, T, H, D) arrays: where a head's vector starts.
struct Heads {
  std::int64_t T, H, D;
  std::int64_t operator()(std::int64_t b, std::int64_t t, std::int64_t h) const { return ((b * T + t) * H + h) * D; }
};

template <class Real>
Real dot(const std::vector<Real>& a, std::int64_t at_a, const std::vector<Real>& b, std::int64_t at_b, std::int64_t D) {
  Real sum = 0;
  for (std::int64_t d = 0; d < D; ++d) sum += a[at_a + d] * b[at_b + d];
  return sum;
}

/// Writes or accumulates a dense (B, T, H, D) gradient into a view, summed over the batch where the batch stride is 0.
template <class Real>
void store_gradient(const HeadView& view, bool accumulate, const std::vector<Real>& values, std::int64_t B, Heads at) {
  if (!view) return;
  const bool shared = view.batch_stride == 0;
  for (std::int64_t b = 0; b < (shared ? 1 : B); ++b)
    for (std::int64_t t = 0; t < at.T; ++t)
      for (std::int64_t h = 0; h < at.H; ++h)
        for (std::int64_t d = 0; d < at.D; ++d) {
          Real sum = values[at(b, t, h) + d];
          if (shared)
            for (std::int64_t other = 1; other < B; ++other) sum += values[at(other, t, h) + d];
          const Tensor tensor{view.data, view.dtype};
          const std::int64_t element = b * view.batch_stride + t * view.row_stride + h * view.head_stride + d;
          write(tensor, element, accumulate ? read<Real>(tensor, element) + sum : sum);
        }
}

}  // namespace

template <class Real>
void Ops<Real>::run(const AttentionForward& op) {
  const AttentionProblem& p = op.problem;
  const Heads query{p.Tq, p.H, p.D}, key{p.Tk, p.H, p.D};
  const auto q = load_heads<Real>(op.q, p.B, p.Tq, p.H, p.D), k = load_heads<Real>(op.k, p.B, p.Tk, p.H, p.D);
  const auto v = load_heads<Real>(op.v, p.B, p.Tk, p.H, p.D);
  std::vector<Real> row(p.Tk), o(p.D);
  for (std::int64_t b = 0; b < p.B; ++b)
    for (std::int64_t h = 0; h < p.H; ++h)
      for (std::int64_t i = 0; i < p.Tq; ++i) {
        for (std::int64_t j = 0; j < p.Tk; ++j) row[j] = Real(p.scale) * dot(q, query(b, i, h), k, key(b, j, h), p.D);
        const Real lse = softmax(p, b, i, row);
        o.assign(p.D, Real(0));
        for (std::int64_t j = 0; j < p.Tk; ++j) {
          if (!visible(p, b, i, j)) continue;
          const Real weight = row[j] * probability_factor<Real>(p, b, h, i, j);
          for (std::int64_t d = 0; d < p.D; ++d) o[d] += weight * v[key(b, j, h) + d];
        }
        for (std::int64_t d = 0; d < p.D; ++d)
          write({op.o.data, op.o.dtype}, b * op.o.batch_stride + i * op.o.row_stride + h * op.o.head_stride + d, o[d]);
        if (op.lse) write(op.lse, (b * p.H + h) * p.Tq + i, lse);
      }
}

template <class Real>
void Ops<Real>::run(const AttentionBackward& op) {
  const AttentionProblem& p = op.problem;
  const Heads query{p.Tq, p.H, p.D}, key{p.Tk, p.H, p.D};
  const auto q = load_heads<Real>(op.q, p.B, p.Tq, p.H, p.D), k = load_heads<Real>(op.k, p.B, p.Tk, p.H, p.D);
  const auto v = load_heads<Real>(op.v, p.B, p.Tk, p.H, p.D), o = load_heads<Real>(op.o, p.B, p.Tq, p.H, p.D);
  const auto d_o = load_heads<Real>(op.d_o, p.B, p.Tq, p.H, p.D);
  const auto lse = load<Real>(op.lse, p.B * p.H * p.Tq);
  std::vector<Real> d_q(q.size()), d_k(k.size()), d_v(v.size());
  const Real scale = Real(p.scale);
  for (std::int64_t b = 0; b < p.B; ++b)
    for (std::int64_t h = 0; h < p.H; ++h)
      for (std::int64_t i = 0; i < p.Tq; ++i) {
        const std::int64_t at_q = query(b, i, h);
        const Real D_i = dot(d_o, at_q, o, at_q, p.D);
        for (std::int64_t j = 0; j < p.Tk; ++j) {
          if (!visible(p, b, i, j)) continue;
          const std::int64_t at_k = key(b, j, h);
          const Real probability = std::exp(scale * dot(q, at_q, k, at_k, p.D) - lse[(b * p.H + h) * p.Tq + i]);
          const Real drop = probability_factor<Real>(p, b, h, i, j);
          const Real d_s = probability * (drop * dot(d_o, at_q, v, at_k, p.D) - D_i);
          for (std::int64_t d = 0; d < p.D; ++d) {
            d_q[at_q + d] += scale * d_s * k[at_k + d];
            d_k[at_k + d] += scale * d_s * q[at_q + d];
            d_v[at_k + d] += drop * probability * d_o[at_q + d];
          }
        }
      }
  store_gradient(op.d_q, op.accumulate_d_q, d_q, p.B, query);
  store_gradient(op.d_k, op.accumulate_d_k, d_k, p.B, key);
  store_gradient(op.d_v, op.accumulate_d_v, d_v, p.B, key);
}

template <class Real>
void Ops<Real>::run(const AttentionScores& op) {
  const AttentionProblem& p = op.problem;
  const Heads query{p.Tq, p.H, p.D}, key{p.Tk, p.H, p.D};
  const auto q = load_heads<Real>(op.q, p.B, p.Tq, p.H, p.D), k = load_heads<Real>(op.k, p.B, p.Tk, p.H, p.D);
  for (std::int64_t b = 0; b < p.B; ++b)
    for (std::int64_t h = 0; h < p.H; ++h)
      for (std::int64_t r = 0; r < op.rows; ++r)
        for (std::int64_t j = 0; j < p.Tk; ++j)
          write(op.scores, ((b * p.H + h) * op.rows + r) * p.Tk + j,
                Real(p.scale) * dot(q, query(b, op.row_begin + r, h), k, key(b, j, h), p.D));
}

template <class Real>
void Ops<Real>::run(const AttentionProbabilities& op) {
  const AttentionProblem& p = op.problem;
  for (std::int64_t bh = 0; bh < p.B * p.H; ++bh)
    for (std::int64_t r = 0; r < op.rows; ++r) {
      const std::int64_t at = (bh * op.rows + r) * p.Tk;
      auto row = load<Real>(op.scores.at(at), p.Tk);
      softmax(p, bh / p.H, op.row_begin + r, row);
      store(op.probabilities.at(at), row);
    }
}

template <class Real>
void Ops<Real>::run(const AttentionContext& op) {
  const AttentionProblem& p = op.problem;
  const Heads key{p.Tk, p.H, p.D};
  const auto v = load_heads<Real>(op.v, p.B, p.Tk, p.H, p.D);
  const auto probabilities = load<Real>(op.probabilities, p.B * p.H * op.rows * p.Tk);
  for (std::int64_t b = 0; b < p.B; ++b)
    for (std::int64_t h = 0; h < p.H; ++h)
      for (std::int64_t r = 0; r < op.rows; ++r)
        for (std::int64_t d = 0; d < p.D; ++d) {
          Real sum = 0;
          for (std::int64_t j = 0; j < p.Tk; ++j)
            sum += probabilities[((b * p.H + h) * op.rows + r) * p.Tk + j] * v[key(b, j, h) + d];
          write({op.o.data, op.o.dtype},
                b * op.o.batch_stride + (op.row_begin + r) * op.o.row_stride + h * op.o.head_stride + d, sum);
        }
}

template void Ops<double>::run(const AttentionForward&);
template void Ops<float>::run(const AttentionForward&);
template void Ops<double>::run(const AttentionBackward&);
template void Ops<float>::run(const AttentionBackward&);
template void Ops<double>::run(const AttentionScores&);
template void Ops<float>::run(const AttentionScores&);
template void Ops<double>::run(const AttentionProbabilities&);
template void Ops<float>::run(const AttentionProbabilities&);
template void Ops<double>::run(const AttentionContext&);
template void Ops<float>::run(const AttentionContext&);

}  // namespace outeffhop::reference
