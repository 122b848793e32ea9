// The two-layer feed-forward sublayer, the same in BERT and OPT.
#pragma once

#include "model/pass.h"

namespace outeffhop {

/// out = contract(activation(expand(x))). Dropout on `out` belongs to the residual sum that follows.
class MlpBlock {
 public:
  LinearLayer expand;    ///< weight (F, C), bias (F)
  LinearLayer contract;  ///< weight (C, F), bias (C)
  Activation activation = Activation::gelu_erf;
  std::size_t pre_site = 0, post_site = 0, out_site = 0;

  /// Kept from forward to backward.
  struct Saved {
    Tensor pre;   ///< (B, T, F) before the activation
    Tensor post;  ///< (B, T, F) after it
  } saved;

  /// `first`: the same block of the first layer.
  void plan(const LayerArena& arena, const MlpBlock& first);
  /// x (B, T, C) -> out (B, T, C).
  void forward(const Pass& pass, ConstTensor x, Tensor out) const;
  /// The part of it that fills `saved`.
  void expand_forward(const Pass& pass, ConstTensor x) const;
  /// saved.pre -> saved.post.
  void activate(const Pass& pass) const;
  /// Reads what forward saved. d_out (B, T, C) is used up before d_x is touched, so d_x may be where d_out is.
  void backward(const Pass& pass, ConstTensor x, ConstTensor d_out, InputGradient d_x) const;
};

}  // namespace outeffhop
