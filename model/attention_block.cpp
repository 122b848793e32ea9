#include "model/attention_block.h"

#include <algorithm>
#include <cmath>

namespace outeffhop {

void AttentionBlock::plan(const LayerArena& arena, const AttentionBlock& first) {
  const std::int64_t rows = arena.rows();
  saved.qkv = arena.take(rows * 3 * C, arena.dtype(), Remade::products, first.saved.qkv);
  saved.o = arena.take(rows * C, arena.dtype(), Remade::products, first.saved.o);
  saved.lse = arena.take(rows * H, unrounded(arena.dtype()), Remade::products, first.saved.lse);
}

AttentionProblem AttentionBlock::problem(const Pass& pass) const {
  AttentionProblem p;
  p.B = pass.B();
  p.H = H;
  p.Tq = p.Tk = pass.T();
  p.D = C / H;
  p.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(p.D)));
  p.n = n;
  p.causal = causal;
  p.key_lengths = pass.batch.key_lengths;
  p.key_ranges = pass.batch.key_ranges;
  p.dropout = pass.dropout(dropout_probability, dropout_site);
  return p;
}

/// (B, T, H, D) whose rows are row_stride elements apart.
HeadView AttentionBlock::head_view(const Pass& pass, Tensor data, std::int64_t row_stride) const {
  return {data.data, data.dtype, pass.T() * row_stride, row_stride, C / H};
}

/// The three parts of a (B, T, 3, H, D) tensor.
AttentionBlock::Heads AttentionBlock::packed(const Pass& pass, Tensor qkv) const {
  return {head_view(pass, qkv, 3 * C), head_view(pass, qkv.at(C), 3 * C), head_view(pass, qkv.at(2 * C), 3 * C)};
}

AttentionBlock::Heads AttentionBlock::project(const Pass& pass, ConstTensor x) const {
  linear_forward(pass.device, query_key_value, pass.rows(), x, saved.qkv);  // (B, T, 3C)
  return packed(pass, saved.qkv);
}

/// As project, in three products, so that each part is a contiguous (B, T, C) that a visitor can read and replace.
AttentionBlock::Heads AttentionBlock::project_observed(const Pass& pass, ConstTensor x) const {
  const std::size_t part_sites[3] = {query_site, key_site, value_site};
  Tensor parts[3];
  for (std::int64_t i = 0; i < 3; ++i) {
    const LinearLayer layer{query_key_value.weight.at(i * C * C), query_key_value.bias.at(i * C), C, C};
    parts[i] = saved.qkv.at(i * pass.rows() * C);
    linear_forward(pass.device, layer, pass.rows(), x, parts[i]);  // (B, T, C)
    pass.show(part_sites[i], parts[i], C);
  }
  return {head_view(pass, parts[0], C), head_view(pass, parts[1], C), head_view(pass, parts[2], C)};
}

void AttentionBlock::attend(const Pass& pass, const Heads& heads) const {
  AttentionForward op;
  op.problem = problem(pass);
  op.q = heads.q;
  op.k = heads.k;
  op.v = heads.v;
  op.o = head_view(pass, saved.o, C);
  if (pass.backward_follows) op.lse = saved.lse;
  pass.device.run(op);
}

/// As attend, with scores and probabilities in memory for a block of query rows at a time.
void AttentionBlock::attend_observed(const Pass& pass, const Heads& heads) const {
  const AttentionProblem shape = problem(pass);
  const std::int64_t row_elements = shape.B * shape.H * shape.Tk;  // of one query row in every head
  const std::int64_t block = std::clamp<std::int64_t>(pass.scratch.scores_capacity / row_elements, 1, shape.Tq);
  const Tensor p = pass.scratch.scores;  // (B, H, rows, Tk)
  for (std::int64_t begin = 0; begin < shape.Tq; begin += block) {
    const std::int64_t rows = std::min(block, shape.Tq - begin);
    const SiteValue value{p, shape.B, shape.H * rows, shape.Tk, begin};
    AttentionScores scores{shape, begin, rows, heads.q, heads.k, p};
    pass.device.run(scores);
    pass.show(scores_site, value);
    AttentionProbabilities probabilities{shape, begin, rows, p, p};
    pass.device.run(probabilities);
    pass.show(probabilities_site, value);
    AttentionContext context{shape, begin, rows, p, heads.v, head_view(pass, saved.o, C)};
    pass.device.run(context);
  }
}

void AttentionBlock::forward(const Pass& pass, ConstTensor x, Tensor out) const {
  const bool parts_observed = pass.wants(query_site) || pass.wants(key_site) || pass.wants(value_site);
  const Heads heads = parts_observed ? project_observed(pass, x) : project(pass, x);
  if (pass.wants(scores_site) || pass.wants(probabilities_site)) {
    attend_observed(pass, heads);
  } else {
    attend(pass, heads);
  }
  pass.show(context_site, saved.o, C);
  linear_forward(pass.device, output, pass.rows(), saved.o, out);  // (B, T, C)
  pass.show(output_site, out, C);
}

void AttentionBlock::backward(const Pass& pass, ConstTensor x, ConstTensor d_out, InputGradient d_x) const {
  const Tensor d_o = pass.scratch.wide;                        // (B, T, H, D)
  const Tensor d_qkv = pass.scratch.wide.at(pass.rows() * C);  // (B, T, 3, H, D)
  linear_backward(pass.device, output, pass.rows(), saved.o, d_out, {d_o});

  const Heads heads = packed(pass, saved.qkv);
  const Heads d_heads = packed(pass, d_qkv);
  AttentionBackward op;
  op.problem = problem(pass);
  op.q = heads.q;
  op.k = heads.k;
  op.v = heads.v;
  op.o = head_view(pass, saved.o, C);
  op.d_o = head_view(pass, d_o, C);
  op.lse = saved.lse;
  op.d_q = d_heads.q;
  op.d_k = d_heads.k;
  op.d_v = d_heads.v;
  pass.device.run(op);

  linear_backward(pass.device, query_key_value, pass.rows(), x, d_qkv, d_x);
}

}  // namespace outeffhop
