// Layer normalisation (Ba, Kiros, Hinton 2016) with the residual add and dropout before it in the same pass.
#pragma once

#include "kernels/dropout.h"
#include "kernels/tensor.h"

namespace outeffhop {

/// sum = residual + dropout(x);  out = (sum - mean) * rstd * weight + bias, over the C channels of each row.
///
/// Post-LN (BERT): out goes on, sum is kept for the backward. Pre-LN (OPT): sum is the residual stream, out feeds the next
/// sublayer. Variance is the biased one; rstd = 1 / sqrt(variance + epsilon). Mean and variance must not cancel: two passes,
/// or an algorithm as good.
///
/// Statistics and out are of sum as it is stored, rounded to the dtype of out, whether it is kept or not. So the op makes the
/// same bits of out, mean and rstd again from sum alone: with x = sum, no residual and no dropout.
struct LayerNormForward {
  std::int64_t B = 0, T = 0, C = 0;
  double epsilon = 1e-5;
  ConstTensor x;         ///< (B, T, C)
  ConstTensor residual;  ///< (B, T, C) or null for 0
  ConstTensor weight;    ///< (C)
  ConstTensor bias;      ///< (C)
  Dropout dropout;       ///< acts on x only; linear mapping, row t, column c
  Tensor sum;            ///< (B, T, C) or null when nobody needs it; may alias x or residual
  Tensor out;            ///< (B, T, C); may alias nothing else
  Tensor mean;           ///< (B, T) fp32 (the reference also takes fp64), or null
  Tensor rstd;           ///< (B, T) fp32, or null
};

/// Backward: with h = (sum - mean) * rstd and g = d_out * weight,
///   d_sum = d_sum_in + rstd * (g - mean_c(g) - h * mean_c(g h)),   d_x = dropout mask and scale applied to d_sum,
///   d_weight += sum over rows of d_out * h,   d_bias += sum over rows of d_out.
/// d_residual is d_sum itself. Where x had no residual and no dropout, d_x may be null.
struct LayerNormBackward {
  std::int64_t B = 0, T = 0, C = 0;
  ConstTensor d_out;     ///< (B, T, C)
  ConstTensor d_sum_in;  ///< (B, T, C) or null for 0: gradient that reaches sum by another way (pre-LN residual stream)
  ConstTensor sum;       ///< (B, T, C) as saved by the forward
  ConstTensor mean;      ///< (B, T)
  ConstTensor rstd;      ///< (B, T)
  ConstTensor weight;    ///< (C)
  Dropout dropout;       ///< as in the forward
  Tensor d_sum;          ///< (B, T, C), written; may alias d_sum_in or d_out
  Tensor d_x;            ///< (B, T, C) or null, written; may not alias d_sum
  Tensor d_weight;       ///< (C) fp32, accumulated, in a fixed order for a given thread count
  Tensor d_bias;         ///< (C) fp32, accumulated, likewise
};

}  // namespace outeffhop
