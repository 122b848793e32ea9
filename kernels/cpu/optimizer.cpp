#include "kernels/optimizer.h"

#include <cmath>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu {

OUTEFFHOP_SIMD_TABLE(OptimizerTable, optimizer_table)

void global_norm(int threads, Scratch& scratch, const GlobalNorm& op) {
  require_same(DType::f32, op.gradient, "the global norm", "the gradient");
  const std::int64_t blocks = (op.count + kGlobalNormBlock - 1) / kGlobalNormBlock;
  double* sums = scratch.get<double>(blocks);
  const auto* gradient = static_cast<const float*>(op.gradient.data);
  const auto& table = optimizer_table();
  parallel_ranges(threads, blocks, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t b = begin; b < end; ++b)
      sums[b] = table.square_sum(gradient + b * kGlobalNormBlock,
                                 std::min(kGlobalNormBlock, op.count - b * kGlobalNormBlock));
  });
  double sum = 0.0;
  for (std::int64_t b = 0; b < blocks; ++b) sum += sums[b];
  op.control->gradient_square_sum = sum;
}

void step_decision(const StepDecision& op) {
  StepControl& control = *op.control;
  control.loss = control.loss_sum / control.label_count;
  control.gradient_norm = std::sqrt(control.gradient_square_sum) / control.label_count;
  const bool finite = std::isfinite(control.loss) && std::isfinite(control.gradient_norm);
  const bool spike = control.loss > control.loss_limit || control.gradient_norm > control.gradient_norm_limit;
  control.skip = !finite ? kSkipNotFinite : spike ? kSkipSpike : 0;
  if (control.skip) {
    control.gradient_scale = 0.0f;
    return;
  }
  const double limit = static_cast<double>(control.max_gradient_norm);
  const double clip = limit > 0.0 ? std::min(1.0, limit / (control.gradient_norm + 1e-6)) : 1.0;
  control.gradient_scale = static_cast<float>(clip / control.label_count);
  ++control.updates;
}

void adamw(int threads, const AdamW& op) {
  const char* name = "AdamW";
  require_same(DType::f32, op.master, name, "the master weights");
  require_same(DType::f32, op.m, name, "the first moment");
  require_same(DType::f32, op.v, name, "the second moment");
  require_same(DType::f32, op.gradient, name, "the gradient");
  require_same(DType::bf16, op.storage, name, "the storage copy");
  const StepControl& control = *op.control;
  if (control.skip) return;

  const auto t = static_cast<double>(control.updates);
  const auto learning_rate = static_cast<double>(control.learning_rate);
  AdamWStep step{};
  step.gradient_scale = control.gradient_scale;
  step.beta1 = static_cast<float>(op.beta1);
  step.beta2 = static_cast<float>(op.beta2);
  step.one_minus_beta1 = static_cast<float>(1.0 - op.beta1);
  step.one_minus_beta2 = static_cast<float>(1.0 - op.beta2);
  step.step_size = static_cast<float>(learning_rate / (1.0 - std::pow(op.beta1, t)));
  step.root_of_correction2 = static_cast<float>(std::sqrt(1.0 - std::pow(op.beta2, t)));
  step.epsilon = static_cast<float>(op.epsilon);

  std::int64_t total = 0;
  for (std::int64_t s = 0; s < op.segment_count; ++s) total += op.segments[s].count;
  auto* p = static_cast<float*>(op.master.data);
  auto* m = static_cast<float*>(op.m.data);
  auto* v = static_cast<float*>(op.v.data);
  const auto* gradient = static_cast<const float*>(op.gradient.data);
  auto* storage = static_cast<bf16*>(op.storage.data);
  const auto& table = optimizer_table();
  // One share of all segments laid end to end, so that many small segments cost no more than one large one.
  parallel_ranges(threads, total, 1 << 12, [&](std::int64_t begin, std::int64_t end, int) {
    AdamWStep mine = step;
    std::int64_t before = 0;
    for (std::int64_t s = 0; s < op.segment_count && before < end; ++s) {
      const AdamWSegment& segment = op.segments[s];
      const std::int64_t from = std::max(begin - before, std::int64_t{0}), to = std::min(end - before, segment.count);
      if (from < to) {
        const std::int64_t at = segment.begin + from;
        mine.decay_factor = static_cast<float>(1.0 - learning_rate * static_cast<double>(segment.weight_decay));
        table.adamw(mine, p + at, m + at, v + at, gradient + at, storage ? storage + at : nullptr, to - from);
      }
      before += segment.count;
    }
  });
}

}  // namespace outeffhop::cpu
