// What BERT and OPT share as whole models: memory, the pass over a batch, the head. Each adds its parameters, its sites and
// its body.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "model/head.h"
#include "model/layer.h"
#include "model/parameter_declarer.h"
#include "model/pass.h"

namespace outeffhop {

class LanguageModel : public Model {
 public:
  const ModelConfig& config() const override { return config_; }
  const ParameterTable& parameters() const override { return weights_.table(); }
  const std::vector<Site>& sites() const override { return sites_.all(); }
  MemoryPlan memory() const override;

  Tensor master() override { return weights_.master(); }
  Tensor storage() override { return weights_.storage(); }
  Tensor gradients() override { return weights_.gradients(); }
  void round_to_storage() override { weights_.round_to_storage(); }

  void forward(const ModelBatch& batch, double* loss_sum, SiteVisitor* visitor) override;
  void forward_backward(const ModelBatch& batch, double* loss_sum, bool dropout) override;
  void logits(const ModelBatch& batch, void* host_out) override;

 protected:
  LanguageModel(const ModelConfig& config, const ModelOptions& options, ParameterTable table, Device& device);

  /// (B, T, C) hidden states before the head.
  virtual ConstTensor body_forward(const Pass& pass) = 0;
  /// From the gradient of the hidden states, in scratch.stream, to those of every parameter of the body.
  virtual void body_backward(const Pass& pass) = 0;
  /// Places every tensor of the body; called twice, the first time to count.
  virtual void plan_body(Arena& activations, Arena& workspace) = 0;
  void plan_layers(Arena& activations);
  /// To be called last by the constructor of a model: plans head, body and scratch, and allocates them.
  void allocate();

  Capacity capacity() const {
    return {options_.max_batch, options_.max_sequence, options_.dtype, options_.training, options_.recompute};
  }

  const ModelConfig config_;
  const ModelOptions options_;
  Device& device_;
  Weights weights_;
  SiteList sites_;
  Scratch scratch_;
  std::vector<Layer> layers_;
  Head head_;

 private:
  void plan(Arena& activations, Arena& workspace);
  Pass make_pass(const ModelBatch& batch, SiteVisitor* visitor, bool backward_follows, bool dropout) const;

  Buffer activations_, workspace_;
};

/// The models, each in a source of its own.
ParameterTable bert_parameters(const ModelConfig& config);
std::unique_ptr<Model> make_bert(const ModelConfig& config, const ModelOptions& options, Device& device);
ParameterTable opt_parameters(const ModelConfig& config);
std::unique_ptr<Model> make_opt(const ModelConfig& config, const ModelOptions& options, Device& device);

}  // namespace outeffhop
