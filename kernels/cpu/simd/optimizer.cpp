#include "kernels/cpu/simd/loop.h"
#include "kernels/cpu/simd/tables.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace outeffhop::cpu::OUTEFFHOP_ISA {

extern const OptimizerTable optimizer_table;

namespace {

using vd = double __attribute__((vector_size(4 * W)));
using vf_half = float __attribute__((vector_size(2 * W)));

/// Correctly rounded square roots.
OUTEFFHOP_INLINE vf square_root(vf x) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<vf>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
#elif defined(__SSE2__)
  return reinterpret_cast<vf>(_mm_sqrt_ps(reinterpret_cast<__m128>(x)));
#else
  float lanes[W];
  store(lanes, x);
  for (int i = 0; i < W; ++i) lanes[i] = __builtin_sqrtf(lanes[i]);
  return load(lanes);
#endif
}

double square_sum(const float* x, std::int64_t count) {
  vd low{}, high{};
  for_vectors(0, count, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
    const vf v = load(x + c, extent);
    vf_half halves[2];
    std::memcpy(halves, &v, sizeof v);
    const vd a = __builtin_convertvector(halves[0], vd), b = __builtin_convertvector(halves[1], vd);
    low = low + a * a;
    high = high + b * b;
  });
  const vd lanes = low + high;
  double sum = 0.0;
  for (int i = 0; i < W / 2; ++i) sum += lanes[i];
  return sum;
}

/// S is bf16 where `storage` is written, float where it is null.
template <class S>
void adamw(const AdamWStep& step, float* p, float* m, float* v, const float* gradient, S* storage, std::int64_t count) {
  for_vectors(0, count, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
    const vf g = load(gradient + c, extent) * splat(step.gradient_scale);
    const vf m_new = load(m + c, extent) * splat(step.beta1) + g * splat(step.one_minus_beta1);
    const vf v_new = load(v + c, extent) * splat(step.beta2) + g * g * splat(step.one_minus_beta2);
    const vf denominator = square_root(v_new) / splat(step.root_of_correction2) + splat(step.epsilon);
    const vf p_new = load(p + c, extent) * splat(step.decay_factor) - splat(step.step_size) * (m_new / denominator);
    store(m + c, m_new, extent);
    store(v + c, v_new, extent);
    store(p + c, p_new, extent);
    if constexpr (sizeof(S) == sizeof(bf16)) store(storage + c, p_new, extent);
  });
  (void)storage;
}

void adamw_range(const AdamWStep& step, float* p, float* m, float* v, const float* gradient, bf16* storage,
                 std::int64_t count) {
  if (storage)
    adamw<bf16>(step, p, m, v, gradient, storage, count);
  else
    adamw<float>(step, p, m, v, gradient, nullptr, count);
}

}  // namespace

const OptimizerTable optimizer_table = {square_sum, adamw_range};

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
