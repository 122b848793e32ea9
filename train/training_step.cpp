#include "train/training_step.h"

#include <limits>

namespace outeffhop {

StepControl training_step(Model& model, Optimizer& optimizer, DeviceBatch& device_batch, const std::vector<Batch>& batches,
                          double learning_rate, std::int64_t updates, const StepLimits& limits) {
  std::int64_t labels = 0;
  for (const Batch& batch : batches) labels += count_labels(batch);
  if (labels == 0) {
    StepControl nothing;
    nothing.learning_rate = static_cast<float>(learning_rate);
    nothing.loss = std::numeric_limits<double>::quiet_NaN();
    nothing.skip = kSkipNoLabels;
    nothing.updates = updates;
    return nothing;
  }
  optimizer.begin_step(learning_rate, labels, updates, limits);
  for (const Batch& batch : batches) model.forward_backward(device_batch.upload(batch), optimizer.loss_sum(), true);
  return optimizer.finish_step();
}

}  // namespace outeffhop
