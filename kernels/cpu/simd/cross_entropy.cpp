#include "kernels/cpu/simd/loop.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

extern const CrossEntropyTable cross_entropy_table;

namespace {

constexpr std::int64_t kChunk = 1024;  // of a row, in the first-level cache while it is read twice

template <class S>
void rows(const CrossEntropy& op, std::int64_t row_begin, std::int64_t row_end, double* losses) {
  const float minus_infinity = -__builtin_inff();
  for (std::int64_t r = row_begin; r < row_end; ++r) {
    S* logits = static_cast<S*>(op.logits.data) + r * op.row_stride;
    const std::int64_t target = op.targets[r];
    if (target < 0) {
      losses[r] = 0.0;
      if (op.write_gradient)
        for_vectors(0, op.V, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY { store(logits + c, vf{}, extent); });
      continue;
    }

    // One pass: the running maximum, and the sum of exponentials relative to it.
    float maximum = minus_infinity;
    double sum = 0.0;
    for (std::int64_t chunk = 0; chunk < op.V; chunk += kChunk) {
      const std::int64_t end = op.V - chunk < kChunk ? op.V : chunk + kChunk;
      vf largest = splat(minus_infinity);
      for_vectors(chunk, end, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
        largest = max(largest, keep(load(logits + c, extent), extent, minus_infinity));
      });
      const float chunk_maximum = hmax(largest);
      if (chunk_maximum > maximum) {
        // The first chunk has nothing to rescale: sum is 0, and exp(-infinity) would do as well.
        sum *= __builtin_exp(static_cast<double>(maximum) - static_cast<double>(chunk_maximum));
        maximum = chunk_maximum;
      }
      vf part{};
      for_vectors(chunk, end, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
        part = part + keep(exp(load(logits + c, extent) - splat(maximum)), extent, 0.0f);
      });
      sum += sum_in_double(part);
    }
    const auto target_logit = static_cast<double>(static_cast<float>(logits[target]));
    losses[r] = __builtin_log(sum) + (static_cast<double>(maximum) - target_logit);

    if (op.write_gradient) {
      const double target_probability = __builtin_exp(target_logit - static_cast<double>(maximum)) / sum;
      const vf factor = splat(static_cast<float>(static_cast<double>(op.gradient_scale) / sum));
      for_vectors(0, op.V, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
        store(logits + c, exp(load(logits + c, extent) - splat(maximum)) * factor, extent);
      });
      // p - 1 in double: it cancels where the model is sure.
      logits[target] = S(static_cast<float>(static_cast<double>(op.gradient_scale) * (target_probability - 1.0)));
    }
  }
}

void table_rows(const CrossEntropy& op, std::int64_t row_begin, std::int64_t row_end, double* losses) {
  OUTEFFHOP_FOR_STORAGE(op.logits.dtype, rows<S>(op, row_begin, row_end, losses));
}

}  // namespace

const CrossEntropyTable cross_entropy_table = {table_rows};

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
