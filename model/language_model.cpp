#include "model/language_model.h"

#include <algorithm>
#include <utility>

namespace outeffhop {
namespace {

/// Scores of all heads for a block of query rows take at most this in the observed mode, or one query row.
constexpr std::int64_t kScoresBytes = 16ll << 20;

}  // namespace

LanguageModel::LanguageModel(const ModelConfig& config, const ModelOptions& options, ParameterTable table, Device& device)
    : config_(config),
      options_(options),
      device_(device),
      weights_(device, std::move(table), options.dtype, options.training) {}

void LanguageModel::plan(Arena& activations, Arena& workspace) {
  const Capacity most = capacity();
  const std::int64_t rows = most.rows(), C = config_.hidden_size;
  plan_body(activations, workspace);
  head_.plan(workspace, most, static_cast<std::int64_t>(device_.logit_bytes()));

  const std::int64_t score_row = most.B * config_.num_attention_heads * most.T;  // one query row in every head
  const auto score_size = static_cast<std::int64_t>(size_of(unrounded(most.dtype)));
  scratch_.scores_capacity = std::max(score_row, std::min(score_row * most.T, kScoresBytes / score_size));
  scratch_.scores = workspace.take(scratch_.scores_capacity, unrounded(most.dtype));
  if (!most.training) return;
  scratch_.stream = workspace.take(rows * C, most.dtype);
  scratch_.branch = workspace.take(rows * C, most.dtype);
  const std::int64_t sublayer = rows * std::max({config_.intermediate_size, 4 * C, config_.embedding_size()});
  scratch_.wide = workspace.take(std::max(sublayer, Head::padded_rows(rows) * C), most.dtype);
}

void LanguageModel::plan_layers(Arena& activations) {
  const Capacity most = capacity();
  for (std::size_t i = 0; i < layers_.size(); ++i) layers_[i].plan({activations, most, i == 0}, layers_[0]);
}

void LanguageModel::allocate() {
  Arena counted_activations, counted_workspace;
  plan(counted_activations, counted_workspace);
  activations_ = Buffer(device_, counted_activations.used());
  workspace_ = Buffer(device_, counted_workspace.used());
  Arena activations(activations_.data()), workspace(workspace_.data());
  plan(activations, workspace);
}

MemoryPlan LanguageModel::memory() const {
  MemoryPlan plan;
  plan.master_weights = weights_.master_bytes();
  plan.storage_weights = weights_.storage_bytes();
  plan.gradients = weights_.gradient_bytes();
  plan.activations = activations_.bytes();
  plan.workspace = workspace_.bytes();
  return plan;
}

Pass LanguageModel::make_pass(const ModelBatch& batch, SiteVisitor* visitor, bool backward_follows, bool dropout) const {
  require(batch.B >= 1 && batch.T >= 1, "a batch of {} x {} tokens reached the model", batch.B, batch.T);
  require(batch.B <= options_.max_batch && batch.T <= options_.max_sequence,
          "a batch of {} x {} tokens reached a model whose memory was planned for {} x {}", batch.B, batch.T,
          options_.max_batch, options_.max_sequence);
  require(batch.label_count <= batch.B * batch.T, "a batch of {} tokens has {} labels", batch.B * batch.T,
          batch.label_count);
  require(!dropout || batch.sample_ids, "dropout needs the sample indices of the batch");
  return {device_, batch, scratch_, sites_, visitor, backward_follows, dropout, options_.seed, options_.recompute};
}

void LanguageModel::forward(const ModelBatch& batch, double* loss_sum, SiteVisitor* visitor) {
  const Pass pass = make_pass(batch, visitor, false, false);
  const Range range(device_, "forward");
  head_.forward(pass, body_forward(pass), loss_sum);
}

void LanguageModel::forward_backward(const ModelBatch& batch, double* loss_sum, bool dropout) {
  require(options_.training, "forward_backward was called on a model made with training = false");
  const Pass pass = make_pass(batch, nullptr, true, dropout);
  if (batch.label_count == 0) return;  // the sum over no labels: loss and every gradient are 0

  const Tensor d_rows = scratch_.wide;  // (padded labels, C); nothing else needs `wide` before the body's backward
  ConstTensor hidden;                   // (B, T, C)
  {
    const Range range(device_, "forward");
    hidden = body_forward(pass);
  }
  head_.forward_backward(pass, hidden, loss_sum, d_rows);
  const Range range(device_, "backward");
  ScatterRows op;
  op.count = Head::padded_rows(batch.label_count);
  op.rows = pass.rows();
  op.C = config_.hidden_size;
  op.index = batch.label_rows;
  op.d_out = d_rows;
  op.d_x = scratch_.stream;
  device_.run(op);
  body_backward(pass);
}

void LanguageModel::logits(const ModelBatch& batch, void* host_out) {
  const Pass pass = make_pass(batch, nullptr, false, false);
  head_.all_logits(pass, body_forward(pass), host_out);
}

}  // namespace outeffhop
