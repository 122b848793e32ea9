#include "kernels/optimizer.h"

#include <algorithm>

#include "kernels/reference/ops.h"
#include "kernels/reference/values.h"

namespace outeffhop::reference {

template <class Real>
void Ops<Real>::run(const GlobalNorm& op) {
  double total = 0;  // by blocks, in double, whatever the compute type: the contract says so
  for (std::int64_t begin = 0; begin < op.count; begin += kGlobalNormBlock) {
    double block = 0;
    for (std::int64_t i = begin; i < std::min(begin + kGlobalNormBlock, op.count); ++i) {
      const double g = read<double>(op.gradient, i);
      block += g * g;
    }
    total += block;
  }
  op.control->gradient_square_sum = total;
}

template <class Real>
void Ops<Real>::run(const StepDecision& op) {
  StepControl& c = *op.control;
  c.loss = c.loss_sum / c.label_count;
  c.gradient_norm = std::sqrt(c.gradient_square_sum) / c.label_count;
  if (!std::isfinite(c.loss) || !std::isfinite(c.gradient_norm)) {
    c.skip = kSkipNotFinite;
  } else {
    c.skip = c.loss > c.loss_limit || c.gradient_norm > c.gradient_norm_limit ? kSkipSpike : 0;
  }
  const double clip = c.max_gradient_norm > 0 ? std::min(1.0, c.max_gradient_norm / (c.gradient_norm + 1e-6)) : 1.0;
  c.gradient_scale = c.skip ? 0.0f : static_cast<float>(clip / c.label_count);
  if (!c.skip) ++c.updates;
}

template <class Real>
void Ops<Real>::run(const AdamW& op) {
  const StepControl& control = *op.control;
  if (control.skip) return;
  // What is the same for every element is computed in double, as the host would.
  const double t = static_cast<double>(control.updates), learning_rate = control.learning_rate;
  const Real step = Real(learning_rate / (1 - std::pow(op.beta1, t)));
  const Real second_correction = Real(1 - std::pow(op.beta2, t));
  const Real b1 = Real(op.beta1), b2 = Real(op.beta2), rest1 = Real(1 - op.beta1), rest2 = Real(1 - op.beta2);
  for (std::int64_t s = 0; s < op.segment_count; ++s) {
    const AdamWSegment& segment = op.segments[s];
    const Real decay = Real(learning_rate * segment.weight_decay);
    for (std::int64_t i = segment.begin; i < segment.begin + segment.count; ++i) {
      const Real g = read<Real>(op.gradient, i) * Real(control.gradient_scale);
      Real p = read<Real>(op.master, i);
      p -= decay * p;
      const Real m = b1 * read<Real>(op.m, i) + rest1 * g;
      const Real v = b2 * read<Real>(op.v, i) + rest2 * g * g;
      p -= step * m / (std::sqrt(v / second_correction) + Real(op.epsilon));
      write(op.m, i, m);
      write(op.v, i, v);
      write(op.master, i, p);
      if (op.storage) write(op.storage, i, read<Real>(op.master, i));
    }
  }
}

template void Ops<double>::run(const GlobalNorm&);
template void Ops<float>::run(const GlobalNorm&);
template void Ops<double>::run(const StepDecision&);
template void Ops<float>::run(const StepDecision&);
template void Ops<double>::run(const AdamW&);
template void Ops<float>::run(const AdamW&);

}  // namespace outeffhop::reference
