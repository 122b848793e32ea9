#include "train/training_step.h"

namespace outeffhop {

StepControl training_step(Model& model, Optimizer& optimizer, DeviceBatch& device_batch, const std::vector<Batch>& batches,
                          double learning_rate, std::int64_t updates, const StepLimits& limits) {
  std::int64_t labels = 0;
  for (const Batch& batch : batches) labels += count_labels(batch);
  optimizer.begin_step(learning_rate, labels, updates, limits);
  for (const Batch& batch : batches) model.forward_backward(device_batch.upload(batch), optimizer.loss_sum(), true);
  return optimizer.finish_step();
}

}  // namespace outeffhop
