#include "kernels/linear.h"

#include <numbers>

#include "kernels/linear_strides.h"
#include "kernels/reference/ops.h"
#include "kernels/reference/values.h"

namespace outeffhop::reference {
namespace {

constexpr double kGeluTanhCubic = 0.044715;  // Hendrycks, Gimpel 2016, section 2

template <class Real>
Real activate(Activation activation, Real x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x > 0 ? x : (x == x ? Real(0) : x);
    case Activation::gelu_erf:
      return x * Real(0.5) * std::erfc(-x / std::numbers::sqrt2_v<Real>);
    case Activation::gelu_tanh: {
      const Real root = std::sqrt(Real(2) / std::numbers::pi_v<Real>);
      return Real(0.5) * x * (Real(1) + std::tanh(root * (x + Real(kGeluTanhCubic) * x * x * x)));
    }
  }
  return x;
}

template <class Real>
Real derivative(Activation activation, Real x) {
  switch (activation) {
    case Activation::none:
      return Real(1);
    case Activation::relu:
      return x > 0 ? Real(1) : Real(0);
    case Activation::gelu_erf: {
      const Real distribution = Real(0.5) * std::erfc(-x / std::numbers::sqrt2_v<Real>);
      const Real density = std::exp(Real(-0.5) * x * x) * std::numbers::inv_sqrtpi_v<Real> / std::numbers::sqrt2_v<Real>;
      return distribution + x * density;
    }
    case Activation::gelu_tanh: {
      const Real root = std::sqrt(Real(2) / std::numbers::pi_v<Real>);
      const Real tanh = std::tanh(root * (x + Real(kGeluTanhCubic) * x * x * x));
      return Real(0.5) * (Real(1) + tanh) +
             Real(0.5) * x * (Real(1) - tanh * tanh) * root * (Real(1) + Real(3 * kGeluTanhCubic) * x * x);
    }
  }
  return Real(1);
}

void require_plain(const Operand& operand, const char* name) {
  require(operand.scale == 1.0f && operand.zero_point == 0,
          "the {} operand of linear has dtype {} with scale {} and zero point {}: only 1 and 0 go with it", name,
          name_of(operand.dtype), operand.scale, operand.zero_point);
}

}  // namespace

template <class Real>
void Ops<Real>::run(const LinearForward& op) {
  require_plain(op.x, "x");
  require_plain(op.weight, "weight");
  const auto x = load<Real>(op.x, op.rows * op.in), weight = load<Real>(op.weight, op.out_features * op.in);
  const auto bias = load_or_zero<Real>(op.bias, op.out_features);
  const std::int64_t stride = out_stride(op);
  double max_abs = 0;
  for (std::int64_t r = 0; r < op.rows; ++r)
    for (std::int64_t o = 0; o < op.out_features; ++o) {
      Real pre = 0;
      for (std::int64_t i = 0; i < op.in; ++i) pre += x[r * op.in + i] * weight[o * op.in + i];
      pre += bias[o];
      const std::int64_t element = r * stride + o;
      if (op.pre) {
        write(op.pre, element, pre);
        pre = read<Real>(op.pre, element);
      }
      write(op.out, element, activate(op.activation, pre));
      const double stored = std::fabs(read<double>(op.out, element));
      if (!(stored <= max_abs)) max_abs = stored;  // a NaN is shown, not hidden
    }
  if (op.max_abs) *op.max_abs = static_cast<float>(max_abs);
}

template <class Real>
void Ops<Real>::run(const LinearBackward& op) {
  std::vector<Real> d_out;  // (rows, out_features)
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const auto row = load<Real>(op.d_out.at(r * d_out_stride(op)), op.out_features);
    d_out.insert(d_out.end(), row.begin(), row.end());
  }
  if (op.d_x) {
    const auto weight = load<Real>(op.weight, op.out_features * op.in);
    for (std::int64_t r = 0; r < op.rows; ++r)
      for (std::int64_t i = 0; i < op.in; ++i) {
        Real sum = 0;
        for (std::int64_t o = 0; o < op.out_features; ++o) sum += d_out[r * op.out_features + o] * weight[o * op.in + i];
        if (op.accumulate_d_x) sum += read<Real>(op.d_x, r * op.in + i);
        write(op.d_x, r * op.in + i, sum);
      }
  }
  if (op.d_weight) {
    const auto x = load<Real>(op.x, op.rows * op.in);
    for (std::int64_t o = 0; o < op.out_features; ++o)
      for (std::int64_t i = 0; i < op.in; ++i) {
        Real sum = 0;
        for (std::int64_t r = 0; r < op.rows; ++r) sum += d_out[r * op.out_features + o] * x[r * op.in + i];
        write(op.d_weight, o * op.in + i, read<Real>(op.d_weight, o * op.in + i) + sum);
      }
  }
  if (op.d_bias) {
    for (std::int64_t o = 0; o < op.out_features; ++o) {
      Real sum = 0;
      for (std::int64_t r = 0; r < op.rows; ++r) sum += d_out[r * op.out_features + o];
      write(op.d_bias, o, read<Real>(op.d_bias, o) + sum);
    }
  }
}

template <class Real>
void Ops<Real>::run(const ActivationForward& op) {
  for (std::int64_t i = 0; i < op.count; ++i) write(op.out, i, activate(op.activation, read<Real>(op.pre, i)));
}

template <class Real>
void Ops<Real>::run(const ActivationBackward& op) {
  for (std::int64_t i = 0; i < op.count; ++i)
    write(op.d_pre, i, read<Real>(op.d_out, i) * derivative(op.activation, read<Real>(op.pre, i)));
}

template void Ops<double>::run(const LinearForward&);
template void Ops<float>::run(const LinearForward&);
template void Ops<double>::run(const LinearBackward&);
template void Ops<float>::run(const LinearBackward&);
template void Ops<double>::run(const ActivationForward&);
template void Ops<float>::run(const ActivationForward&);
template void Ops<double>::run(const ActivationBackward&);
template void Ops<float>::run(const ActivationBackward&);

}  // namespace outeffhop::reference
