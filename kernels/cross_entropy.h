// Cross-entropy over the vocabulary, fused with its gradient.
#pragma once

#include "kernels/tensor.h"

namespace outeffhop {

/// loss_i = logsumexp(logits_i) - logits_i[target_i] for rows with target >= 0; 0 otherwise (padding of a bucket).
/// With write_gradient the logits are replaced by gradient_scale * (softmax(logits_i) - onehot(target_i)), and by 0 in
/// rows without a target. loss_sum (device scalar) is increased by the sum of the losses, added in double in a fixed order.
struct CrossEntropy {
  std::int64_t rows = 0, V = 0;
  std::int64_t row_stride = 0;             ///< elements from one row of logits to the next, >= V; columns beyond V are ignored
  Tensor logits;                           ///< (rows, V)
  const std::int32_t* targets = nullptr;   ///< (rows); negative: no label
  bool write_gradient = false;
  float gradient_scale = 1.0f;
  Tensor losses;                           ///< (rows) fp32 (reference: also fp64) or null
  double* loss_sum = nullptr;              ///< or null
};

}  // namespace outeffhop
