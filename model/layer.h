// A transformer layer, as far as post-LN and pre-LN models agree: its blocks, and which of their activations are kept until
// the backward or made again for it.
#pragma once

#include <string>

#include "model/attention_block.h"
#include "model/mlp_block.h"
#include "model/residual_norm.h"

namespace outeffhop {

struct Layer {
  std::string name;  ///< of its Hugging Face module: its part of a step in profilers
  AttentionBlock attention;
  ResidualNorm middle_norm;  ///< of residual + attention: the MLP's input
  MlpBlock mlp;
  ResidualNorm
      outer_norm;  ///< post-LN: of residual + MLP, the next layer's input; pre-LN: of the stream, the attention's input

  void plan(const LayerArena& arena, const Layer& first);
  /// out = mlp(middle_norm(residual + attention(x))): all of the layer but the outer norm. Each (B, T, C).
  void forward(const Pass& pass, ConstTensor x, ConstTensor residual, Tensor out) const;
  /// Makes what forward() made of x and residual, but was not kept, and is not yet needed for another layer. `out` is none
  /// of it: the outer norm that took it has kept their sum.
  void remake(const Pass& pass, ConstTensor x, ConstTensor residual) const;

 private:
  void attend(const Pass& pass, ConstTensor x, ConstTensor residual) const;
};

}  // namespace outeffhop
