#include "train/training_step.h"

#include <functional>
#include <limits>

namespace outeffhop {

void TrainingStep::start(const std::vector<Batch>& batches, double learning_rate, std::int64_t updates,
                         const StepLimits& limits) {
  skipped_.reset();
  std::int64_t labels = 0;
  for (const Batch& batch : batches) labels += count_labels(batch);
  if (labels == 0) {
    StepControl nothing;
    nothing.learning_rate = static_cast<float>(learning_rate);
    nothing.loss = std::numeric_limits<double>::quiet_NaN();
    nothing.skip = kSkipNoLabels;
    nothing.updates = updates;
    skipped_ = nothing;
    return;
  }
  optimizer_.begin_step(learning_rate, labels, updates, limits);
  for (std::size_t i = 0; i < batches.size(); ++i) {
    const ModelBatch batch = device_batch_.upload(batches[i]);
    const auto work = [&] { model_.forward_backward(batch, optimizer_.loss_sum(), true); };
    device_.repeat(work_key("micro-batch", model_, batch, optimizer_.loss_sum()), std::ref(work));
    if (i + 1 < batches.size()) device_batch_.prepare(batches[i + 1]);  // while the device works on this one
  }
  optimizer_.finish_step();
}

StepControl TrainingStep::finish() { return skipped_ ? *skipped_ : optimizer_.decision(); }

}  // namespace outeffhop
