// Layer normalisation of a residual sum: the joint between sublayers, the same op in post-LN (BERT) and pre-LN (OPT) models.
#pragma once

#include "model/pass.h"

namespace outeffhop {

/// sum = residual + dropout(x);  out = LayerNorm(sum).
class ResidualNorm {
 public:
  Weight weight, bias;  ///< (C)
  std::int64_t C = 0;
  double epsilon = 0.0;
  double dropout_probability = 0.0;  ///< on x; 0 where x is not a sublayer's output
  std::uint32_t dropout_site = 0;
  bool sum_goes_on = false;  ///< pre-LN: somebody reads `sum` after this
  std::size_t sum_site = 0, out_site = 0;

  /// Kept from forward to backward.
  struct Saved {
    Tensor sum;   ///< (B, T, C); x is put here before the forward
    Tensor out;   ///< (B, T, C)
    Tensor mean;  ///< (B, T)
    Tensor rstd;  ///< (B, T)
  } saved;

  /// `first`: the same norm of the first layer. `sum`: what it takes to make the sum again.
  void plan(const LayerArena& arena, const ResidualNorm& first, Remade sum);
  /// x is in saved.sum; residual (B, T, C) or null for 0.
  void forward(const Pass& pass, ConstTensor residual) const;
  /// Makes saved.out from saved.sum again, unless it was kept.
  void remake_out(const Pass& pass) const;
  /// Writes the gradient of the residual to d_sum, which may be d_out or d_sum_in, and returns the gradient of x: d_sum
  /// itself without dropout, otherwise written to d_x.
  ConstTensor backward(const Pass& pass, ConstTensor d_out, ConstTensor d_sum_in, Tensor d_sum, Tensor d_x) const;

 private:
  LayerNormForward norm_of_sum(const Pass& pass) const;
};

}  // namespace outeffhop
