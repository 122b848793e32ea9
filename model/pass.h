// What every block of a model needs to know about the pass it takes part in.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/device.h"
#include "model/arena.h"
#include "model/model.h"
#include "model/weights.h"

namespace outeffhop {

/// What it takes to make an activation of a layer again when its backward needs it.
enum class Remade : std::uint8_t {
  elementwise,  ///< an elementwise op on another activation of the layer
  products,     ///< the layer's forward from its input on
  never,        ///< it is what the layer's input is made from
};

/// The largest batch that memory is planned for.
struct Capacity {
  std::int64_t B = 0, T = 0;
  DType dtype = DType::f32;
  bool training = false;
  Recompute recompute = Recompute::none;

  std::int64_t rows() const { return B * T; }

  /// Whether each layer has such an activation for itself, until its backward. If not, all layers share that of the first.
  bool keeps(Remade remade) const {
    if (!training) return false;
    switch (recompute) {
      case Recompute::none: return true;
      case Recompute::cheap: return remade != Remade::elementwise;
      case Recompute::block: return remade == Remade::never;
    }
    return true;
  }
};

/// Memory for the activations of one layer.
struct LayerArena {
  Arena& arena;
  const Capacity& capacity;
  bool is_first = true;  ///< or the only one: it has memory for everything

  std::int64_t rows() const { return capacity.rows(); }
  DType dtype() const { return capacity.dtype; }
  /// A tensor of the layer's own, or `first`, which is that of the first layer.
  Tensor take(std::int64_t count, DType dtype, Remade remade, Tensor first) const {
    return is_first || capacity.keeps(remade) ? arena.take(count, dtype) : first;
  }
};

/// Memory that no block owns: gradients of activations while they travel backward, and what is used up at once.
struct Scratch {
  Tensor stream;  ///< (B, T, C) gradient that goes from layer to layer
  Tensor branch;  ///< (B, T, C) gradient of a sublayer's output, after dropout's backward
  Tensor wide;    ///< gradients inside one sublayer: (B, T, F), or d_o (B, T, C) and d_qkv (B, T, 3C)
  Tensor scores;  ///< observed attention: one block of scores or probabilities, fp32 (fp64 in an fp64 model)
  std::int64_t scores_capacity = 0;  ///< its elements
};

/// The sites of a model in the order they are declared; blocks keep the index.
class SiteList {
 public:
  std::size_t add(const std::string& name, Site::Kind kind, std::int64_t layer = -1) {
    sites_.push_back({name, kind, layer});
    return sites_.size() - 1;
  }
  const std::vector<Site>& all() const { return sites_; }

 private:
  std::vector<Site> sites_;
};

/// One forward, or forward and backward, over one batch.
struct Pass {
  Device& device;
  const ModelBatch& batch;
  const Scratch& scratch;
  const SiteList& sites;
  SiteVisitor* visitor = nullptr;
  bool backward_follows = false;  ///< save what the backward reads
  bool dropout_on = false;
  std::uint64_t seed = 0;
  Recompute recompute = Recompute::none;

  std::int64_t B() const { return batch.B; }
  std::int64_t T() const { return batch.T; }
  std::int64_t rows() const { return batch.B * batch.T; }

  /// Dropout site `site` of the model with `probability`, or none when dropout is off.
  Dropout dropout(double probability, std::uint32_t site) const {
    return dropout_on ? Dropout::make(probability, seed, site, batch.sample_ids) : Dropout{};
  }

  bool wants(std::size_t site) const { return visitor && visitor->wants(sites.all()[site]); }
  void show(std::size_t site, const SiteValue& value) const {
    if (wants(site)) visitor->visit(sites.all()[site], value);
  }
  /// Shows a (B, T, channels) tensor.
  void show(std::size_t site, Tensor data, std::int64_t channels) const { show(site, {data, B(), T(), channels, 0}); }
};

/// out = activation(x weight^T + bias) over `rows` rows; what the activation was applied to goes to `pre` unless that is null.
/// Rows of out begin every `out_stride` elements, or lie end to end.
inline void linear_forward(Device& device, const LinearLayer& layer, std::int64_t rows, ConstTensor x, Tensor out,
                           Activation activation = Activation::none, Tensor pre = {}, std::int64_t out_stride = 0) {
  LinearForward op;
  op.rows = rows;
  op.in = layer.in;
  op.out_features = layer.out;
  op.x = x;
  op.weight = layer.weight.value;
  op.bias = layer.bias.value;
  op.activation = activation;
  op.pre = pre;
  op.out = out;
  op.out_stride = out_stride;
  device.run(op);
}

/// Where the gradient of a block's input goes: nowhere (null), into `tensor`, or added to what it holds.
struct InputGradient {
  Tensor tensor;
  bool accumulate = false;
};

/// Gradients of the layer's parameters accumulate; that of x goes where `d_x` says. Rows of d_out begin every `d_out_stride`
/// elements, or lie end to end.
inline void linear_backward(Device& device, const LinearLayer& layer, std::int64_t rows, ConstTensor x, ConstTensor d_out,
                            InputGradient d_x, std::int64_t d_out_stride = 0) {
  LinearBackward op;
  op.rows = rows;
  op.in = layer.in;
  op.out_features = layer.out;
  op.d_out = d_out;
  op.d_out_stride = d_out_stride;
  op.x = x;
  op.weight = layer.weight.value;
  op.d_x = d_x.tensor;
  op.accumulate_d_x = d_x.accumulate;
  op.d_weight = layer.weight.gradient;
  op.d_bias = layer.bias.gradient;
  device.run(op);
}

}  // namespace outeffhop
