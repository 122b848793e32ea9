#include "kernels/cpu/simd/loop.h"
#include "kernels/cpu/simd/philox.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

extern const DropoutTable dropout_table;

namespace {

template <class S>
void add(const DropoutAdd& op, std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t C = op.C;
  const std::uint32_t threshold = op.dropout.threshold;
  alignas(64) std::uint16_t bits[kPhiloxColumns];
  for (std::int64_t r = row_begin; r < row_end; ++r) {
    const S* x = static_cast<const S*>(op.x.data) + r * C;
    const S* residual = op.residual.data ? static_cast<const S*>(op.residual.data) + r * C : nullptr;
    S* out = static_cast<S*>(op.out.data) + r * C;
    for (std::int64_t chunk = 0; chunk < C; chunk += kPhiloxColumns) {
      const std::int64_t end = C - chunk < kPhiloxColumns ? C : chunk + kPhiloxColumns;
      if (threshold)
        philox_bits_linear(op.dropout.key, op.dropout.sample_ids[r / op.T], static_cast<std::uint32_t>(r % op.T), chunk,
                           end - chunk, bits);
      for_vectors(chunk, end, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
        vf v = load(x + c, extent);
        if (threshold) v = v * dropout_factor(bits + (c - chunk), threshold, op.dropout.scale);
        if (residual) v = v + load(residual + c, extent);
        store(out + c, v, extent);
      });
    }
  }
}

void add_rows(const DropoutAdd& op, std::int64_t row_begin, std::int64_t row_end) {
  OUTEFFHOP_FOR_STORAGE(op.out.dtype, add<S>(op, row_begin, row_end));
}

}  // namespace

const DropoutTable dropout_table = {add_rows};

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
