// The end of a step: global norm, the decision to take the step, AdamW.
//
// What changes from step to step lives in a StepControl in device memory, so that a recorded graph of the step can be
// replayed with new values, and so that the decision to skip is taken where the gradients are.
#pragma once

#include <limits>

#include "kernels/tensor.h"

namespace outeffhop {

/// Why a step is not taken: StepControl::skip.
constexpr std::int32_t kSkipNotFinite = 1;  ///< its loss or gradient norm is infinite or no number
constexpr std::int32_t kSkipSpike = 2;      ///< its loss or gradient norm is above the host's limit
constexpr std::int32_t kSkipNoLabels = 3;   ///< there was nothing to predict: said by the host, which runs no op then

struct StepControl {
  // Written by the host before the step.
  float learning_rate = 0.0f;
  float max_gradient_norm = 0.0f;  ///< clip the global L2 norm to this; 0: no clipping
  double label_count = 0.0;        ///< labelled tokens of the whole step, all micro-batches and ranks
  double loss_limit = std::numeric_limits<double>::infinity();           ///< a larger loss is a spike
  double gradient_norm_limit = std::numeric_limits<double>::infinity();  ///< a larger norm is one
  double loss_sum = 0.0;           ///< set to 0 by the host; CrossEntropy adds to it
  // Written by StepDecision.
  double gradient_square_sum = 0.0;  ///< GlobalNorm writes it: of the unscaled gradient sum
  double loss = 0.0;                 ///< loss_sum / label_count
  double gradient_norm = 0.0;        ///< sqrt(gradient_square_sum) / label_count: the norm of the mean gradient, unclipped
  float gradient_scale = 0.0f;       ///< what AdamW multiplies gradients by: clip factor / label_count
  std::int32_t skip = 0;             ///< not 0: AdamW leaves everything as it is; kSkipNotFinite or kSkipSpike
  std::int64_t updates = 0;          ///< updates taken so far, this one included; Adam's t
};

/// Elements in each block whose squares are summed before the blocks are added, in double.
constexpr std::int64_t kGlobalNormBlock = 1 << 14;

/// control->gradient_square_sum = sum of squares of a flat gradient, by blocks of kGlobalNormBlock, each and all of them in a
/// fixed order: the bits do not depend on the thread count.
struct GlobalNorm {
  std::int64_t count = 0;
  ConstTensor gradient;  ///< (count) fp32
  StepControl* control = nullptr;
};

/// Fills the second half of the control block: loss, norm, skip, gradient_scale, and updates (increased by 1 unless skipped).
/// Clipping as torch.nn.utils.clip_grad_norm_: factor = min(1, max_norm / (norm + 1e-6)).
struct StepDecision {
  StepControl* control = nullptr;
};

/// A run of the flat parameter array with one weight decay.
struct AdamWSegment {
  std::int64_t begin = 0, count = 0;
  float weight_decay = 0.0f;
};

/// AdamW (Loshchilov, Hutter 2019) as torch.optim.AdamW: with g = gradient * control->gradient_scale, t = control->updates,
///   p -= lr wd p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;
///   p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps);  storage = round(p).
/// Nothing is touched when control->skip is set. Elements outside every segment are left alone.
struct AdamW {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  Tensor master;          ///< fp32 master weights
  Tensor m, v;            ///< fp32 moments
  ConstTensor gradient;   ///< fp32
  Tensor storage;         ///< bf16 copy of the weights, or null when the master weights are what the model reads
  const AdamWSegment* segments = nullptr;  ///< host memory
  std::int64_t segment_count = 0;
  const StepControl* control = nullptr;    ///< device memory
};

}  // namespace outeffhop
