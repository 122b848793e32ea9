#include "model/mlp_block.h"

namespace outeffhop {

void MlpBlock::plan(const LayerArena& arena, const MlpBlock& first) {
  const std::int64_t count = arena.rows() * expand.out;
  saved.pre = arena.take(count, arena.dtype(), Remade::products, first.saved.pre);
  saved.post = arena.take(count, arena.dtype(), Remade::elementwise, first.saved.post);
}

void MlpBlock::forward(const Pass& pass, ConstTensor x, Tensor out) const {
  expand_forward(pass, x);
  linear_forward(pass.device, contract, pass.rows(), saved.post, out);  // (B, T, C)
  pass.show(out_site, out, contract.out);
}

void MlpBlock::expand_forward(const Pass& pass, ConstTensor x) const {
  const std::int64_t rows = pass.rows(), F = expand.out;
  if (pass.wants(pre_site)) {
    linear_forward(pass.device, expand, rows, x, saved.pre);  // (B, T, F)
    pass.show(pre_site, saved.pre, F);
    activate(pass);
  } else {
    linear_forward(pass.device, expand, rows, x, saved.post, activation, pass.backward_follows ? saved.pre : Tensor{});
  }
  pass.show(post_site, saved.post, F);
}

void MlpBlock::activate(const Pass& pass) const {
  pass.device.run(ActivationForward{pass.rows() * expand.out, activation, saved.pre, saved.post});
}

void MlpBlock::backward(const Pass& pass, ConstTensor x, ConstTensor d_out, InputGradient d_x) const {
  const Tensor d_inner = pass.scratch.wide;  // (B, T, F): of the activation's output, then of its input
  linear_backward(pass.device, contract, pass.rows(), saved.post, d_out, {d_inner});
  ActivationBackward op;
  op.count = pass.rows() * expand.out;
  op.activation = activation;
  op.pre = saved.pre;
  op.d_out = d_inner;
  op.d_pre = d_inner;
  pass.device.run(op);
  linear_backward(pass.device, expand, pass.rows(), x, d_inner, d_x);
}

}  // namespace outeffhop
