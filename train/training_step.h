// One optimizer step, from batches in host memory to updated weights.
#pragma once

#include <cstdint>
#include <vector>

#include "data/batch.h"
#include "model/model.h"
#include "train/device_batch.h"
#include "train/optimizer.h"

namespace outeffhop {

/// Accumulates the gradients of `batches`, dropout on, and takes or skips the step; returns what was decided. `updates` are
/// the steps taken so far. Batches without a label are skipped (kSkipNoLabels) before any op runs. Allocates no memory once its shapes have been seen (tests/allocation shows it): B, T, and the
/// bucket of rows that a micro-batch's labels fill in the head.
StepControl training_step(Model& model, Optimizer& optimizer, DeviceBatch& device_batch, const std::vector<Batch>& batches,
                          double learning_rate, std::int64_t updates, const StepLimits& limits);

}  // namespace outeffhop
