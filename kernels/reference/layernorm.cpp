#include "kernels/layernorm.h"

#include "kernels/reference/ops.h"
#include "kernels/reference/values.h"

namespace outeffhop::reference {

template <class Real>
void Ops<Real>::run(const LayerNormForward& op) {
  const std::int64_t C = op.C, rows = op.B * op.T;
  const auto x = load<Real>(op.x, rows * C);
  const auto residual = load_or_zero<Real>(op.residual, rows * C);
  const auto weight = load<Real>(op.weight, C), bias = load<Real>(op.bias, C);
  std::vector<Real> sum(x.size()), out(x.size()), means(rows), rstds(rows);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t b = row / op.T, t = row % op.T;
    Real mean = 0, variance = 0;
    for (std::int64_t c = 0; c < C; ++c) {
      const std::int64_t i = row * C + c;
      sum[i] = rounded(op.out.dtype, residual[i] + x[i] * dropout_factor<Real>(op.dropout, b, t, c));
      mean += sum[i];
    }
    mean /= Real(C);
    for (std::int64_t c = 0; c < C; ++c) {
      const Real centred = sum[row * C + c] - mean;
      variance += centred * centred;
    }
    variance /= Real(C);
    const Real rstd = Real(1) / std::sqrt(variance + Real(op.epsilon));
    for (std::int64_t c = 0; c < C; ++c) out[row * C + c] = (sum[row * C + c] - mean) * rstd * weight[c] + bias[c];
    means[row] = mean;
    rstds[row] = rstd;
  }
  store(op.sum, sum);
  store(op.out, out);
  store(op.mean, means);
  store(op.rstd, rstds);
}

template <class Real>
void Ops<Real>::run(const LayerNormBackward& op) {
  const std::int64_t C = op.C, rows = op.B * op.T;
  const auto d_out = load<Real>(op.d_out, rows * C), sum = load<Real>(op.sum, rows * C);
  const auto d_sum_in = load_or_zero<Real>(op.d_sum_in, rows * C);
  const auto means = load<Real>(op.mean, rows), rstds = load<Real>(op.rstd, rows), weight = load<Real>(op.weight, C);
  auto d_weight = load_or_zero<Real>(op.d_weight, C), d_bias = load_or_zero<Real>(op.d_bias, C);
  std::vector<Real> d_sum(sum.size()), d_x(sum.size());
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t b = row / op.T, t = row % op.T;
    Real mean_g = 0, mean_gh = 0;
    for (std::int64_t c = 0; c < C; ++c) {
      const Real h = (sum[row * C + c] - means[row]) * rstds[row];
      const Real g = d_out[row * C + c] * weight[c];
      mean_g += g;
      mean_gh += g * h;
      d_weight[c] += d_out[row * C + c] * h;
      d_bias[c] += d_out[row * C + c];
    }
    mean_g /= Real(C);
    mean_gh /= Real(C);
    for (std::int64_t c = 0; c < C; ++c) {
      const std::int64_t i = row * C + c;
      const Real h = (sum[i] - means[row]) * rstds[row];
      const Real g = d_out[i] * weight[c];
      d_sum[i] = d_sum_in[i] + rstds[row] * (g - mean_g - h * mean_gh);
      d_x[i] = d_sum[i] * dropout_factor<Real>(op.dropout, b, t, c);
    }
  }
  store(op.d_sum, d_sum);
  store(op.d_x, d_x);
  store(op.d_weight, d_weight);
  store(op.d_bias, d_bias);
}

template void Ops<double>::run(const LayerNormForward&);
template void Ops<float>::run(const LayerNormForward&);
template void Ops<double>::run(const LayerNormBackward&);
template void Ops<float>::run(const LayerNormBackward&);

}  // namespace outeffhop::reference
