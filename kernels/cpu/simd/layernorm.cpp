#include "kernels/cpu/simd/loop.h"
#include "kernels/cpu/simd/philox.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

extern const LayerNormTable layernorm_table;

namespace {

template <class S>
void forward(const LayerNormForward& op, const float* weight, const float* bias, std::int64_t row_begin, std::int64_t row_end,
             float* row) {
  const std::int64_t C = op.C;
  const auto count = static_cast<double>(C);
  const std::uint32_t threshold = op.dropout.threshold;
  alignas(64) std::uint16_t bits[kPhiloxColumns];
  for (std::int64_t r = row_begin; r < row_end; ++r) {
    const S* x = static_cast<const S*>(op.x.data) + r * C;
    const S* residual = op.residual.data ? static_cast<const S*>(op.residual.data) + r * C : nullptr;
    S* sum = op.sum.data ? static_cast<S*>(op.sum.data) + r * C : nullptr;
    S* out = static_cast<S*>(op.out.data) + r * C;

    // The sum, kept as floats in `row`, and its mean: chunks in fp32, added up in double.
    double total = 0.0;
    for (std::int64_t chunk = 0; chunk < C; chunk += kPhiloxColumns) {
      const std::int64_t end = C - chunk < kPhiloxColumns ? C : chunk + kPhiloxColumns;
      if (threshold)
        philox_bits_linear(op.dropout.key, op.dropout.sample_ids[r / op.T], static_cast<std::uint32_t>(r % op.T), chunk,
                           end - chunk, bits);
      vf part{};
      for_vectors(chunk, end, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
        vf v = load(x + c, extent);
        if (threshold) v = v * dropout_factor(bits + (c - chunk), threshold, op.dropout.scale);
        if (residual) v = v + load(residual + c, extent);
        v = rounded(v, out);
        store(row + c, v);
        if (sum) store(sum + c, v, extent);
        part = part + keep(v, extent, 0.0f);
      });
      total += sum_in_double(part);
    }
    const double mean = total / count;
    const auto mean_high = static_cast<float>(mean);
    // What fp32 loses of the mean would shift every deviation of a row that lies far from 0.
    const auto mean_low = static_cast<float>(mean - static_cast<double>(mean_high));

    vf squares{};
    for_vectors(0, C, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
      const vf d = keep((load(row + c) - splat(mean_high)) - splat(mean_low), extent, 0.0f);
      store(row + c, d);
      squares = squares + d * d;
    });
    const auto rstd = static_cast<float>(1.0 / __builtin_sqrt(sum_in_double(squares) / count + op.epsilon));

    for_vectors(0, C, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
      store(out + c, load(row + c) * splat(rstd) * load(weight + c, extent) + load(bias + c, extent), extent);
    });
    if (op.mean.data) static_cast<float*>(op.mean.data)[r] = mean_high;
    if (op.rstd.data) static_cast<float*>(op.rstd.data)[r] = rstd;
  }
}

template <class S>
void backward(const LayerNormBackward& op, const float* weight, std::int64_t row_begin, std::int64_t row_end, float* d_weight,
              float* d_bias, float* row) {
  const std::int64_t C = op.C;
  const auto count = static_cast<double>(C);
  const std::uint32_t threshold = op.dropout.threshold;
  alignas(64) std::uint16_t bits[kPhiloxColumns];
  for (std::int64_t r = row_begin; r < row_end; ++r) {
    const S* d_out = static_cast<const S*>(op.d_out.data) + r * C;
    const S* d_sum_in = op.d_sum_in.data ? static_cast<const S*>(op.d_sum_in.data) + r * C : nullptr;
    const S* sum = static_cast<const S*>(op.sum.data) + r * C;
    S* d_sum = static_cast<S*>(op.d_sum.data) + r * C;
    S* d_x = op.d_x.data ? static_cast<S*>(op.d_x.data) + r * C : nullptr;
    const vf mean = splat(static_cast<const float*>(op.mean.data)[r]);
    const vf rstd = splat(static_cast<const float*>(op.rstd.data)[r]);

    vf sum_g{}, sum_gh{};
    for_vectors(0, C, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
      const vf d = load(d_out + c, extent);
      const vf h = (load(sum + c, extent) - mean) * rstd;
      store(d_weight + c, load(d_weight + c, extent) + d * h, extent);
      store(d_bias + c, load(d_bias + c, extent) + d, extent);
      const vf g = d * load(weight + c, extent);  // 0 outside the row
      // Kept, so that the g below is the one in the mean: fused into a difference, it would be another, not rounded yet.
      store(row + c, g);
      sum_g = sum_g + g;
      sum_gh = sum_gh + g * h;
    });
    const vf mean_g = splat(static_cast<float>(sum_in_double(sum_g) / count));
    const vf mean_gh = splat(static_cast<float>(sum_in_double(sum_gh) / count));

    for (std::int64_t chunk = 0; chunk < C; chunk += kPhiloxColumns) {
      const std::int64_t end = C - chunk < kPhiloxColumns ? C : chunk + kPhiloxColumns;
      if (threshold && d_x)
        philox_bits_linear(op.dropout.key, op.dropout.sample_ids[r / op.T], static_cast<std::uint32_t>(r % op.T), chunk,
                           end - chunk, bits);
      for_vectors(chunk, end, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
        const vf h = (load(sum + c, extent) - mean) * rstd;
        vf d = rstd * (load(row + c) - mean_g - h * mean_gh);
        if (d_sum_in) d = d + load(d_sum_in + c, extent);
        store(d_sum + c, d, extent);
        if (d_x) {
          if (threshold) d = d * dropout_factor(bits + (c - chunk), threshold, op.dropout.scale);
          store(d_x + c, d, extent);
        }
      });
    }
  }
}

void forward_rows(const LayerNormForward& op, const float* weight, const float* bias, std::int64_t row_begin,
                  std::int64_t row_end, float* row) {
  OUTEFFHOP_FOR_STORAGE(op.out.dtype, forward<S>(op, weight, bias, row_begin, row_end, row));
}

void backward_rows(const LayerNormBackward& op, const float* weight, std::int64_t row_begin, std::int64_t row_end,
                   float* d_weight, float* d_bias, float* row) {
  OUTEFFHOP_FOR_STORAGE(op.d_out.dtype, backward<S>(op, weight, row_begin, row_end, d_weight, d_bias, row));
}

}  // namespace

const LayerNormTable layernorm_table = {forward_rows, backward_rows};

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
