#include "train/evaluation.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "data/loader.h"

namespace outeffhop {

double EvaluationResult::perplexity() const { return std::exp(loss()); }

double EvaluationResult::reference_perplexity() const { return std::exp(batch_mean_sum / static_cast<double>(samples)); }

std::unique_ptr<Objective> make_objective(const DataConfig& data, std::int64_t vocab_size, std::uint64_t seed) {
  if (data.objective == "causal_lm") return make_causal_lm();
  require(data.objective == "masked_lm", "the objective \"{}\" was not resolved", data.objective);
  std::vector<std::int32_t> special;
  for (const std::int64_t id : data.special_token_ids) special.push_back(static_cast<std::int32_t>(id));
  return make_masked_lm(data.mlm_probability, static_cast<std::int32_t>(data.mask_token_id), std::move(special), vocab_size,
                        seed);
}

std::optional<EvaluationResult> evaluate(Device& device, Model& model, DeviceBatch& device_batch, const Sampler& sampler,
                                         const Objective& objective, const EvaluationSettings& settings,
                                         SiteVisitor* visitor) {
  auto samples = static_cast<std::int64_t>(sampler.sample_count());
  if (settings.batches > 0 && settings.batches <= samples / settings.batch_size) {
    samples = settings.batches * settings.batch_size;  // which cannot overflow, as it is no more than `samples` was
  }

  double* const loss_sum = device_batch.loss_sum();
  EvaluationResult result;
  Batch batch;
  const auto make = [&](std::int64_t first) {
    make_batch(sampler, objective, std::min(settings.batch_size, samples - first), sampler.length(),
               model.config().vocab_size, static_cast<std::uint64_t>(first), batch);
  };
  if (samples > 0) make(0);
  for (std::int64_t first = 0; first < samples; first += settings.batch_size) {
    if (settings.stop && settings.stop()) return std::nullopt;
    const ModelBatch on_device = device_batch.upload(batch);
    const auto forward = [&] {
      device.zero(loss_sum, sizeof(double));
      model.forward(on_device, loss_sum, visitor);
    };
    if (visitor) {  // who looks at values on the host
      const Range range(device, "evaluation");
      forward();
    } else {
      device.repeat(work_key("evaluation", model, on_device, loss_sum), std::ref(forward));
    }
    if (first + settings.batch_size < samples) {  // while the device works
      make(first + settings.batch_size);
      device_batch.prepare(batch);
    }
    double batch_sum = 0.0;
    device.copy_out(&batch_sum, loss_sum, sizeof batch_sum);
    device.synchronize();

    result.loss_sum += batch_sum;
    result.labels += on_device.label_count;
    if (on_device.label_count > 0) {
      result.batch_mean_sum += batch_sum / static_cast<double>(on_device.label_count) * static_cast<double>(on_device.B);
      result.samples += on_device.B;
    }
  }
  if (result.labels == 0) {
    fail(ErrorKind::data, "nothing to evaluate: none of the {} sequences of {} tokens has a labelled token", samples,
         sampler.length());
  }
  return result;
}

double unigram_perplexity(const ShardMetadata& metadata, const std::string& objective) {
  return objective == "masked_lm" ? metadata.unigram_perplexity_non_special : metadata.unigram_perplexity_all;
}

}  // namespace outeffhop
