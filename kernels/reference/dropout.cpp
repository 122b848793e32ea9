#include "kernels/dropout.h"

#include "kernels/reference/ops.h"
#include "kernels/reference/values.h"

namespace outeffhop::reference {

template <class Real>
void Ops<Real>::run(const DropoutAdd& op) {
  for (std::int64_t b = 0; b < op.B; ++b)
    for (std::int64_t t = 0; t < op.T; ++t)
      for (std::int64_t c = 0; c < op.C; ++c) {
        const std::int64_t i = (b * op.T + t) * op.C + c;
        const Real residual = op.residual ? read<Real>(op.residual, i) : Real(0);
        write(op.out, i, residual + read<Real>(op.x, i) * dropout_factor<Real>(op.dropout, b, t, c));
      }
}

template void Ops<double>::run(const DropoutAdd&);
template void Ops<float>::run(const DropoutAdd&);

}  // namespace outeffhop::reference
