// The loss of a model on held-out shards.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "data/objective.h"
#include "data/sampler.h"
#include "data/shards.h"
#include "kernels/device.h"
#include "model/model.h"
#include "train/config.h"
#include "train/device_batch.h"

namespace outeffhop {

struct EvaluationResult {
  double loss_sum = 0.0;  ///< cross-entropies of all labelled tokens
  std::int64_t labels = 0;
  double batch_mean_sum = 0.0;  ///< over samples, of the mean loss of the batch the sample was in
  std::int64_t samples = 0;

  double loss() const { return loss_sum / static_cast<double>(labels); }
  /// exp(mean cross-entropy of a labelled token).
  double perplexity() const;
  /// The OutEffHop reference's figure: exp(mean over samples of the batch-mean loss). The same where every batch has equally
  /// many labels, as in causal_lm; slightly different for masked_lm.
  double reference_perplexity() const;
};

struct EvaluationSettings {
  std::int64_t batch_size = 1;
  std::int64_t batches = 0;    ///< 0: every sample of an epoch once
  std::function<bool()> stop;  ///< asked between batches, where there is one: true abandons the evaluation
};

/// The objective that `data` (resolved) asks for; `seed` decides what is masked.
std::unique_ptr<Objective> make_objective(const DataConfig& data, std::int64_t vocab_size, std::uint64_t seed);

/// Runs the model over the samples of `sampler` (one that does not shuffle), dropout off. What is masked depends on the
/// objective's seed and the sample's index alone, so every evaluation of a run asks the same questions. `visitor`, if any,
/// observes every batch. Nothing is returned when settings.stop abandoned it.
std::optional<EvaluationResult> evaluate(Device& device, Model& model, DeviceBatch& device_batch,
                                         const Sampler& sampler, const Objective& objective,
                                         const EvaluationSettings& settings, SiteVisitor* visitor = nullptr);

/// Perplexity of a model that knows only how frequent each token is, on what `objective` asks for; 0: unknown.
double unigram_perplexity(const ShardMetadata& metadata, const std::string& objective);

}  // namespace outeffhop
