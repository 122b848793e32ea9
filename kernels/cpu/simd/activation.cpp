#include "kernels/cpu/simd/loop.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

extern const ActivationTable activation_table;

namespace {

/// Phi(x), the normal distribution function, and phi(x), its density.
struct Normal {
  vf distribution, density;
};

/// With t = |x|: Phi(-t) = exp(-t^2 / 2) r(t), where r(t) = erfcx(t / sqrt 2) / 2 varies slowly. r is fitted on [0, 14] as u P(u)
/// with u = 1 / (1 + 0.3 t) and P of degree 9 (Chebyshev nodes; 2e-9), so that the relative error stays at the level of
/// fp32 in the lower tail too. Around 0, where the result is about a half, Phi = 1/2 + x Q(x^2) has fewer roundings; Q is of
/// degree 5 (3e-10).
OUTEFFHOP_INLINE Normal normal(vf x) {
  const vf t = abs(x);
  const vf u = splat(1.0f) / (splat(1.0f) + splat(0.3f) * t);
  vf p = splat(-0.02091435973f);
  p = p * u + splat(0.1140402721f);
  p = p * u + splat(-0.2320384829f);
  p = p * u + splat(0.196940677f);
  p = p * u + splat(-0.08374254902f);
  p = p * u + splat(0.09848074018f);
  p = p * u + splat(0.07758906438f);
  p = p * u + splat(0.1104051798f);
  p = p * u + splat(0.1195517632f);
  p = p * u + splat(0.1196876931f);
  const vf z = x * x;
  const vf e = exp(z * splat(-0.5f));
  const vf tail = e * p * u;
  vf q = splat(-7.660538171e-6f);
  q = q * z + splat(1.135022962e-4f);
  q = q * z + splat(-1.186343989e-3f);
  q = q * z + splat(9.973328481e-3f);
  q = q * z + splat(-6.649036057e-2f);
  q = q * z + splat(0.3989422801f);
  const vf outer = x < splat(0.0f) ? tail : splat(1.0f) - tail;
  return {t < splat(1.0f) ? splat(0.5f) + x * q : outer, e * splat(0.3989422804f)};
}

constexpr float kRootTwoOverPi = 0.7978845608f, kCubic = 0.044715f;

/// exp(-2 z), z = sqrt(2 / pi) (x + 0.044715 x^3): 0.5 (1 + tanh z) = 1 / (1 + exp(-2 z)).
OUTEFFHOP_INLINE vf tanh_exponential(vf x) {
  return exp(splat(-2.0f * kRootTwoOverPi) * (x + splat(kCubic) * x * x * x));
}

template <Activation A>
OUTEFFHOP_INLINE vf value(vf x) {
  if constexpr (A == Activation::gelu_erf) return x * normal(x).distribution;
  if constexpr (A == Activation::gelu_tanh) return x / (splat(1.0f) + tanh_exponential(x));
  if constexpr (A == Activation::relu) return x < splat(0.0f) ? splat(0.0f) : x;  // NaN stays NaN
  return x;
}

template <Activation A>
OUTEFFHOP_INLINE vf gradient(vf x, vf d) {
  if constexpr (A == Activation::gelu_erf) {
    const Normal n = normal(x);
    return d * (n.distribution + x * n.density);
  }
  if constexpr (A == Activation::gelu_tanh) {
    // 1 - s is made as e s, since it cancels; e is kept finite for that (the first argument of min may not be NaN).
    const vf e = min(splat(1e30f), tanh_exponential(x));
    const vf s = splat(1.0f) / (splat(1.0f) + e);
    const vf slope = splat(2.0f * kRootTwoOverPi) * (splat(1.0f) + splat(3.0f * kCubic) * x * x);
    return d * (s + x * s * (e * s) * slope);
  }
  if constexpr (A == Activation::relu) return x <= splat(0.0f) ? splat(0.0f) : d;
  return d;
}

template <class S, Activation A>
std::int32_t forward(const ConstTensor& pre, const Tensor& out, std::int64_t begin, std::int64_t end) {
  const S* from = static_cast<const S*>(pre.data);
  S* to = static_cast<S*>(out.data);
  vi largest{};
  for_vectors(begin, end, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
    const vf y = value<A>(load(from + c, extent));
    store(to + c, y, extent);
    const vi magnitude = reinterpret_cast<vi>(abs(rounded(keep(y, extent, 0.0f), to)));
    largest = magnitude > largest ? magnitude : largest;
  });
  std::int32_t bits = 0;
  for (int i = 0; i < W; ++i) bits = largest[i] > bits ? largest[i] : bits;
  return bits;
}

template <class S, Activation A>
void backward(const ActivationBackward& op, std::int64_t begin, std::int64_t end) {
  const S* pre = static_cast<const S*>(op.pre.data);
  const S* d_out = static_cast<const S*>(op.d_out.data);
  S* d_pre = static_cast<S*>(op.d_pre.data);
  for_vectors(begin, end, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
    store(d_pre + c, gradient<A>(load(pre + c, extent), load(d_out + c, extent)), extent);
  });
}

std::int32_t forward_range(Activation activation, const ConstTensor& pre, const Tensor& out, std::int64_t begin,
                           std::int64_t end) {
  OUTEFFHOP_FOR_STORAGE(out.dtype, switch (activation) {
    case Activation::none: return forward<S, Activation::none>(pre, out, begin, end);
    case Activation::gelu_erf: return forward<S, Activation::gelu_erf>(pre, out, begin, end);
    case Activation::gelu_tanh: return forward<S, Activation::gelu_tanh>(pre, out, begin, end);
    case Activation::relu: return forward<S, Activation::relu>(pre, out, begin, end);
  });
  return 0;
}

void backward_range(const ActivationBackward& op, std::int64_t begin, std::int64_t end) {
  OUTEFFHOP_FOR_STORAGE(op.pre.dtype, switch (op.activation) {
    case Activation::none: backward<S, Activation::none>(op, begin, end); break;
    case Activation::gelu_erf: backward<S, Activation::gelu_erf>(op, begin, end); break;
    case Activation::gelu_tanh: backward<S, Activation::gelu_tanh>(op, begin, end); break;
    case Activation::relu: backward<S, Activation::relu>(op, begin, end); break;
  });
}

template <class S>
void column_sums(const void* data, std::int64_t rows, std::int64_t stride, std::int64_t begin, std::int64_t end, float* to) {
  const S* x = static_cast<const S*>(data);
  // Eight rows are added up before they join the running sum: an eighth of its traffic, and of its rounding errors.
  constexpr std::int64_t kGroup = 8;
  std::int64_t r = 0;
  for (; r + kGroup <= rows; r += kGroup) {
    for_vectors(begin, end, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
      const S* p = x + r * stride + c;
      const vf a = (load(p, extent) + load(p + stride, extent)) + (load(p + 2 * stride, extent) + load(p + 3 * stride, extent));
      p += 4 * stride;
      const vf b = (load(p, extent) + load(p + stride, extent)) + (load(p + 2 * stride, extent) + load(p + 3 * stride, extent));
      store(to + c, load(to + c, extent) + (a + b), extent);
    });
  }
  for (; r < rows; ++r)
    for_vectors(begin, end, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
      store(to + c, load(to + c, extent) + load(x + r * stride + c, extent), extent);
    });
}

void add_column_sums(const ConstTensor& x, std::int64_t rows, std::int64_t stride, std::int64_t begin, std::int64_t end,
                     float* to) {
  OUTEFFHOP_FOR_STORAGE(x.dtype, column_sums<S>(x.data, rows, stride, begin, end, to));
}

}  // namespace

const ActivationTable activation_table = {forward_range, backward_range, add_column_sums};

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
