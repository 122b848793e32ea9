#include "train/optimizer.h"

#include <functional>

namespace outeffhop {

std::vector<AdamWSegment> decay_segments(const ParameterTable& table, const OptimizerConfig& config) {
  std::vector<AdamWSegment> segments;
  for (const Parameter& p : table.all()) {
    const bool decays = p.layernorm_weight ? config.wd_LN_gamma : p.decay;
    const float decay = decays ? static_cast<float>(config.weight_decay) : 0.0f;
    if (!segments.empty() && segments.back().weight_decay == decay) {
      segments.back().count = p.offset + p.count - segments.back().begin;
    } else {
      segments.push_back({p.offset, p.count, decay});
    }
  }
  return segments;
}

Optimizer::Optimizer(Device& device, Model& model, const OptimizerConfig& config)
    : device_(device), model_(model), config_(config), segments_(decay_segments(model.parameters(), config)) {
  const auto bytes = static_cast<std::size_t>(model.parameters().flat_size()) * sizeof(float);
  m_ = Buffer(device, bytes);
  v_ = Buffer(device, bytes);
  control_ = Buffer(device, sizeof(StepControl));
}

void Optimizer::begin_step(double learning_rate, std::int64_t label_count, std::int64_t updates, const StepLimits& limits) {
  StepControl control;
  control.learning_rate = static_cast<float>(learning_rate);
  control.max_gradient_norm = static_cast<float>(config_.max_gradient_norm);
  control.label_count = static_cast<double>(label_count);
  control.loss_limit = limits.loss;
  control.gradient_norm_limit = limits.gradient_norm;
  control.updates = updates;
  device_.copy_in(control_.data(), &control, sizeof control);
  device_.zero(model_.gradients().data, static_cast<std::size_t>(model_.parameters().flat_size()) * sizeof(float));
}

void Optimizer::finish_step() {
  WorkKey key{"update"};
  key.shape[0] = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(this));
  const auto work = [this] { apply(); };
  device_.repeat(key, std::ref(work));
}

void Optimizer::apply() {
  auto* control = control_.as<StepControl>();
  device_.run(GlobalNorm{model_.parameters().flat_size(), model_.gradients(), control});
  device_.run(StepDecision{control});
  AdamW update;
  update.beta1 = config_.beta1;
  update.beta2 = config_.beta2;
  update.epsilon = config_.epsilon;
  update.master = model_.master();
  update.m = first_moments();
  update.v = second_moments();
  update.gradient = model_.gradients();
  if (model_.storage().data != model_.master().data) update.storage = model_.storage();
  update.segments = segments_.data();
  update.segment_count = static_cast<std::int64_t>(segments_.size());
  update.control = control;
  device_.run(update);
}

StepControl Optimizer::decision() {
  StepControl decided;
  device_.copy_out(&decided, control_.data(), sizeof decided);
  device_.synchronize();
  return decided;
}

}  // namespace outeffhop
