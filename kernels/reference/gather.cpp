#include "kernels/gather.h"

#include "kernels/reference/ops.h"
#include "kernels/reference/values.h"

namespace outeffhop::reference {

template <class Real>
void Ops<Real>::run(const GatherRows& op) {
  for (std::int64_t i = 0; i < op.count; ++i)
    for (std::int64_t c = 0; c < op.C; ++c)
      write(op.out, i * op.C + c, op.index[i] < 0 ? Real(0) : read<Real>(op.x, op.index[i] * op.C + c));
}

template <class Real>
void Ops<Real>::run(const ScatterRows& op) {
  std::vector<Real> d_x(op.rows * op.C, Real(0));
  for (std::int64_t i = 0; i < op.count; ++i)
    for (std::int64_t c = 0; c < op.C && op.index[i] >= 0; ++c)
      d_x[op.index[i] * op.C + c] = read<Real>(op.d_out, i * op.C + c);
  store(op.d_x, d_x);
}

template void Ops<double>::run(const GatherRows&);
template void Ops<float>::run(const GatherRows&);
template void Ops<double>::run(const ScatterRows&);
template void Ops<float>::run(const ScatterRows&);

}  // namespace outeffhop::reference
