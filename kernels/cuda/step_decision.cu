// StepDecision. One thread: it turns what the norm and the losses left in the control block into what AdamW needs, so that
// no value has to come to the host in between.
#include <cmath>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"

namespace outeffhop::cuda {
namespace {

__global__ void step_decision_kernel(StepControl* in_memory) {
  StepControl control = *in_memory;
  control.loss = control.loss_sum / control.label_count;
  control.gradient_norm = sqrt(control.gradient_square_sum) / control.label_count;
  const bool finite = std::isfinite(control.loss) && std::isfinite(control.gradient_norm);
  const bool spike = control.loss > control.loss_limit || control.gradient_norm > control.gradient_norm_limit;
  control.skip = !finite ? kSkipNotFinite : spike ? kSkipSpike : 0;
  control.gradient_scale = 0.0f;
  if (control.skip == 0) {
    const auto limit = static_cast<double>(control.max_gradient_norm);
    const double clip = limit > 0.0 ? min(1.0, limit / (control.gradient_norm + 1e-6)) : 1.0;
    control.gradient_scale = static_cast<float>(clip / control.label_count);
    ++control.updates;
  }
  *in_memory = control;
}

}  // namespace

void step_decision(const Context& context, const StepDecision& op) {
  launch({.kernel = "step_decision", .grid = 1, .block = 1, .stream = context.stream}, step_decision_kernel, op.control);
}

}  // namespace outeffhop::cuda
