// One optimizer step, from batches in host memory to updated weights.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "data/batch.h"
#include "model/model.h"
#include "train/device_batch.h"
#include "train/optimizer.h"

namespace outeffhop {

/// Accumulates the gradients of a step's batches, dropout on, and takes or skips the step. Allocates no memory once its shapes
/// have been seen (tests/allocation shows it): B, T, and the bucket of rows that a micro-batch's labels fill in the head.
class TrainingStep {
 public:
  TrainingStep(Device& device, Model& model, Optimizer& optimizer, DeviceBatch& device_batch)
      : device_(device), model_(model), optimizer_(optimizer), device_batch_(device_batch) {}

  /// Hands the device the whole step, and need not wait until it is done: what the host does before finish() costs no time
  /// on a GPU. `updates` are the steps taken so far. Batches without a label are skipped (kSkipNoLabels) before any op runs.
  void start(const std::vector<Batch>& batches, double learning_rate, std::int64_t updates, const StepLimits& limits);
  /// Waits for the step, and returns what was decided.
  StepControl finish();

 private:
  Device& device_;
  Model& model_;
  Optimizer& optimizer_;
  DeviceBatch& device_batch_;
  std::optional<StepControl> skipped_;  ///< the step that was started, if no op was run for it
};

}  // namespace outeffhop
