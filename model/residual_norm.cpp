#include "model/residual_norm.h"

namespace outeffhop {

void ResidualNorm::plan(const LayerArena& arena, const ResidualNorm& first, Remade sum) {
  const std::int64_t rows = arena.rows();
  saved.sum = arena.take(rows * C, arena.dtype(), sum, first.saved.sum);
  saved.out = arena.take(rows * C, arena.dtype(), Remade::elementwise, first.saved.out);
  saved.mean = arena.take(rows, unrounded(arena.dtype()), sum, first.saved.mean);
  saved.rstd = arena.take(rows, unrounded(arena.dtype()), sum, first.saved.rstd);
}

/// The norm of saved.sum as it lies there.
LayerNormForward ResidualNorm::norm_of_sum(const Pass& pass) const {
  LayerNormForward op;
  op.B = pass.B();
  op.T = pass.T();
  op.C = C;
  op.epsilon = epsilon;
  op.x = saved.sum;
  op.weight = weight.value;
  op.bias = bias.value;
  op.out = saved.out;
  return op;
}

void ResidualNorm::remake_out(const Pass& pass) const {
  if (pass.recompute != Recompute::none) pass.device.run(norm_of_sum(pass));
}

void ResidualNorm::forward(const Pass& pass, ConstTensor residual) const {
  LayerNormForward op = norm_of_sum(pass);
  if (pass.wants(sum_site)) {
    // The sum must exist, and may change, before it is normalised: the fused op comes apart.
    if (residual) {
      DropoutAdd add;
      add.B = pass.B();
      add.T = pass.T();
      add.C = C;
      add.x = saved.sum;
      add.residual = residual;
      add.out = saved.sum;
      pass.device.run(add);
    }
    pass.show(sum_site, saved.sum, C);
  } else {
    op.residual = residual;
    op.dropout = pass.dropout(dropout_probability, dropout_site);
    // Without a residual and dropout the sum is x, and already in place.
    const bool sum_is_x = !residual && !op.dropout;
    if (!sum_is_x && (pass.backward_follows || sum_goes_on)) op.sum = saved.sum;
  }
  if (pass.backward_follows) {
    op.mean = saved.mean;
    op.rstd = saved.rstd;
  }
  pass.device.run(op);
  pass.show(out_site, saved.out, C);
}

ConstTensor ResidualNorm::backward(const Pass& pass, ConstTensor d_out, ConstTensor d_sum_in, Tensor d_sum,
                                   Tensor d_x) const {
  LayerNormBackward op;
  op.B = pass.B();
  op.T = pass.T();
  op.C = C;
  op.d_out = d_out;
  op.d_sum_in = d_sum_in;
  op.sum = saved.sum;
  op.mean = saved.mean;
  op.rstd = saved.rstd;
  op.weight = weight.value;
  op.dropout = pass.dropout(dropout_probability, dropout_site);
  op.d_sum = d_sum;
  if (op.dropout) op.d_x = d_x;
  op.d_weight = weight.gradient;
  op.d_bias = bias.gradient;
  pass.device.run(op);
  return op.dropout ? ConstTensor(d_x) : ConstTensor(d_sum);
}

}  // namespace outeffhop
