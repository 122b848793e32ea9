// Self-attention with its projections, the same in BERT and OPT.
#pragma once

#include "model/pass.h"

namespace outeffhop {

/// out = output(attention(query(x), key(x), value(x))). Dropout on `out` belongs to the residual sum that follows.
class AttentionBlock {
 public:
  LinearLayer query_key_value;  ///< weight (3C, C): three weights back to back; bias (3C)
  LinearLayer output;           ///< weight (C, C), bias (C)
  std::int64_t C = 0, H = 0;    ///< H heads of C / H channels
  float n = 1.0f;               ///< the constant in the denominator
  bool causal = false;
  double dropout_probability = 0.0;  ///< on the probabilities
  std::uint32_t dropout_site = 0;
  std::size_t query_site = 0, key_site = 0, value_site = 0, scores_site = 0, probabilities_site = 0, context_site = 0,
              output_site = 0;

  /// Kept from forward to backward.
  struct Saved {
    Tensor qkv;  ///< (B, T, 3, H, D); when its parts are observed three tensors (B, T, H, D), one after the other
    Tensor o;    ///< (B, T, H, D)
    Tensor lse;  ///< (B, H, T)
  } saved;

  /// `first`: the same block of the first layer.
  void plan(const LayerArena& arena, const AttentionBlock& first);
  /// x (B, T, C) -> out (B, T, C).
  void forward(const Pass& pass, ConstTensor x, Tensor out) const;
  /// Reads what forward saved. d_out (B, T, C) is used up before d_x is touched, so d_x may be where d_out is.
  void backward(const Pass& pass, ConstTensor x, ConstTensor d_out, InputGradient d_x) const;

 private:
  struct Heads {
    HeadView q, k, v;
  };
  AttentionProblem problem(const Pass& pass) const;
  HeadView head_view(const Pass& pass, Tensor data, std::int64_t row_stride) const;
  Heads packed(const Pass& pass, Tensor qkv) const;
  Heads project(const Pass& pass, ConstTensor x) const;
  Heads project_observed(const Pass& pass, ConstTensor x) const;
  void attend(const Pass& pass, const Heads& heads) const;
  void attend_observed(const Pass& pass, const Heads& heads) const;
};

}  // namespace outeffhop
