#include "model/layer.h"

namespace outeffhop {

void Layer::plan(const LayerArena& arena, const Layer& first) {
  attention.plan(arena, first.attention);
  middle_norm.plan(arena, first.middle_norm, Remade::products);
  mlp.plan(arena, first.mlp);
  outer_norm.plan(arena, first.outer_norm, Remade::never);
}

void Layer::forward(const Pass& pass, ConstTensor x, ConstTensor residual, Tensor out) const {
  attend(pass, x, residual);
  mlp.forward(pass, middle_norm.saved.out, out);
}

void Layer::attend(const Pass& pass, ConstTensor x, ConstTensor residual) const {
  attention.forward(pass, x, middle_norm.saved.sum);
  middle_norm.forward(pass, residual);
}

void Layer::remake(const Pass& pass, ConstTensor x, ConstTensor residual) const {
  switch (pass.recompute) {
    case Recompute::none:
      break;
    case Recompute::cheap:
      middle_norm.remake_out(pass);
      mlp.activate(pass);
      break;
    case Recompute::block:
      attend(pass, x, residual);
      mlp.expand_forward(pass, middle_norm.saved.out);
      break;
  }
}

}  // namespace outeffhop
