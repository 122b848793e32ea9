// The end of a training step: gradient norm, the decision to take the step, AdamW; and the moments they keep.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/device.h"
#include "model/model.h"
#include "train/config.h"
#include "train/spike_window.h"

namespace outeffhop {

/// Runs of the flat parameter array with their weight decay: weights and embeddings decay, biases never, layer norm weights
/// only under wd_LN_gamma. Neighbours of one decay are one run; the padding between parameters has no gradient, so it may
/// belong to a run.
std::vector<AdamWSegment> decay_segments(const ParameterTable& table, const OptimizerConfig& config);

class Optimizer {
 public:
  Optimizer(Device& device, Model& model, const OptimizerConfig& config);

  /// Zeroes gradients and loss, and hands the device what this step is to use. Above `limits` it is skipped.
  void begin_step(double learning_rate, std::int64_t label_count, std::int64_t updates, const StepLimits& limits = {});
  /// Where the step's cross-entropies are added up.
  double* loss_sum() { return &control_.as<StepControl>()->loss_sum; }
  /// Applies the accumulated gradients, or skips them.
  void finish_step();
  /// Waits for that, and returns what was decided.
  StepControl decision();

  Tensor first_moments() const { return {m_.data(), DType::f32}; }
  Tensor second_moments() const { return {v_.data(), DType::f32}; }
  std::size_t bytes() const { return m_.bytes() + v_.bytes(); }

 private:
  void apply();

  Device& device_;
  Model& model_;
  OptimizerConfig config_;
  std::vector<AdamWSegment> segments_;
  Buffer m_, v_, control_;
};

}  // namespace outeffhop
