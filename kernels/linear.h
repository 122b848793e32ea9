// Linear layers: matrix products with what surrounds them.
#pragma once

#include "kernels/tensor.h"

namespace outeffhop {

/// gelu_erf is x Phi(x) exactly (Hendrycks, Gimpel 2016; Hugging Face "gelu"), gelu_tanh its tanh form ("gelu_new").
enum class Activation : std::uint8_t { none, gelu_erf, gelu_tanh, relu };

/// An operand of a product. For quantised dtypes the value of an element e is scale * (e - zero_point); for fp32 and bf16
/// scale is 1 and zero_point 0 (checked).
struct Operand : ConstTensor {
  float scale = 1.0f;
  std::int32_t zero_point = 0;

  Operand() = default;
  Operand(const ConstTensor& t) : ConstTensor(t) {}  // NOLINT: implicit by intent
  Operand(const Tensor& t) : ConstTensor(t) {}       // NOLINT
};

/// pre = x weight^T + bias;  out = activation(pre). Accumulation in fp32. Where pre is kept, out is the activation of pre as
/// it is stored, to the bit what ActivationForward makes of it; where not, it may be that of a pre that was never rounded.
/// x (rows, in), weight (out_features, in) as Hugging Face stores it, bias (out_features) or null.
struct LinearForward {
  std::int64_t rows = 0, in = 0, out_features = 0;
  Operand x;                                ///< (rows, in)
  Operand weight;                           ///< (out_features, in)
  ConstTensor bias;                         ///< (out_features) or null
  Activation activation = Activation::none;
  Tensor pre;         ///< (rows, out_features): the pre-activation, needed by ActivationBackward; null when not kept
  Tensor out;         ///< (rows, out_features); fp32 is allowed as the output of bf16 operands
  /// Elements from one row of out to the next; 0: out_features. What lies between rows is not touched. Rows apart go only
  /// with a product and its bias: no activation, pre, max_abs (checked).
  std::int64_t out_stride = 0;
  float* max_abs = nullptr;  ///< device scalar, written: max |out| as stored; null when not wanted
};

/// d_x = d_out weight (written or accumulated), d_weight += d_out^T x, d_bias += column sums of d_out.
/// Each of the three is left out when null.
struct LinearBackward {
  std::int64_t rows = 0, in = 0, out_features = 0;
  ConstTensor d_out;              ///< (rows, out_features)
  std::int64_t d_out_stride = 0;  ///< elements from one row of d_out to the next; 0: out_features
  ConstTensor x;                  ///< (rows, in)
  ConstTensor weight;             ///< (out_features, in)
  Tensor d_x;                     ///< (rows, in) storage dtype
  bool accumulate_d_x = false;
  Tensor d_weight;                ///< (out_features, in) fp32, accumulated
  Tensor d_bias;                  ///< (out_features) fp32, accumulated
};

/// out = activation(pre), elementwise: for a pre-activation that was looked at, and perhaps changed, after its product.
struct ActivationForward {
  std::int64_t count = 0;
  Activation activation = Activation::none;
  ConstTensor pre;  ///< (count)
  Tensor out;       ///< (count); may alias pre
};

/// d_pre = d_out * activation'(pre), elementwise; may be in place. At 0 the derivative of ReLU is 0, as in PyTorch.
struct ActivationBackward {
  std::int64_t count = 0;
  Activation activation = Activation::none;
  ConstTensor pre;    ///< (count)
  ConstTensor d_out;  ///< (count)
  Tensor d_pre;       ///< (count); may alias d_out
};

}  // namespace outeffhop
