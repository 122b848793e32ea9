#include "kernels/cross_entropy.h"

#include <algorithm>

#include "kernels/reference/ops.h"
#include "kernels/reference/values.h"

namespace outeffhop::reference {

template <class Real>
void Ops<Real>::run(const CrossEntropy& op) {
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const Tensor row = op.logits.at(r * op.row_stride);
    const std::int64_t target = op.targets[r];
    require(target < op.V, "cross-entropy was given the target {} in row {}, outside its {} classes", target, r, op.V);
    auto x = load<Real>(row, op.V);
    Real loss = 0;
    if (target >= 0) {
      const Real maximum = *std::max_element(x.begin(), x.end());
      Real sum = 0;
      for (const Real logit : x) sum += std::exp(logit - maximum);
      loss = maximum - x[target] + std::log(sum);
      for (Real& logit : x) logit = Real(op.gradient_scale) * (std::exp(logit - maximum) / sum);
      x[target] -= Real(op.gradient_scale);
    } else {
      x.assign(op.V, Real(0));
    }
    if (op.write_gradient) store(row, x);
    if (op.losses) write(op.losses, r, loss);
    if (op.loss_sum) *op.loss_sum += static_cast<double>(loss);
  }
}

template void Ops<double>::run(const CrossEntropy&);
template void Ops<float>::run(const CrossEntropy&);

}  // namespace outeffhop::reference
