#include "kernels/statistics.h"

#include "kernels/reference/ops.h"
#include "kernels/reference/values.h"

namespace outeffhop::reference {

template <class Real>
void Ops<Real>::run(const RowMoments& op) {
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const auto x = load<double>(op.x.at(r * op.C), op.C);  // in double, whatever the compute type: the contract says so
    Moments moments;
    for (const double value : x) {
      const double magnitude = std::fabs(value);
      if (!(magnitude <= moments.max_abs) && !std::isnan(moments.max_abs)) moments.max_abs = magnitude;
      moments.mean += value;
    }
    moments.mean /= static_cast<double>(op.C);
    for (const double value : x) {
      const double square = (value - moments.mean) * (value - moments.mean);
      moments.square_sum += square;
      moments.fourth_sum += square * square;
    }
    op.moments[r] = moments;
  }
}

template <class Real>
void Ops<Real>::run(const Cast& op) {
  for (std::int64_t i = 0; i < op.count; ++i) write(op.to, i, read<double>(op.from, i));
}

template void Ops<double>::run(const RowMoments&);
template void Ops<float>::run(const RowMoments&);
template void Ops<double>::run(const Cast&);
template void Ops<float>::run(const Cast&);

}  // namespace outeffhop::reference
