#include "kernels/cpu/simd/loop.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

extern const StatisticsTable statistics_table;

namespace {

using vd = double __attribute__((vector_size(4 * W)));
using vf_half = float __attribute__((vector_size(2 * W)));

struct Doubles {
  vd low, high;
};

OUTEFFHOP_INLINE Doubles to_double(vf x) {
  vf_half halves[2];
  std::memcpy(halves, &x, sizeof x);
  return {__builtin_convertvector(halves[0], vd), __builtin_convertvector(halves[1], vd)};
}

/// Lanes outside the row deviate from its mean by nothing.
OUTEFFHOP_INLINE void clear_outside(Doubles&, Whole) {}
OUTEFFHOP_INLINE void clear_outside(Doubles& d, Part part) {
  for (int i = 0; i < W / 2; ++i) {
    if (i >= part.count) d.low[i] = 0.0;
    if (i + W / 2 >= part.count) d.high[i] = 0.0;
  }
}

OUTEFFHOP_INLINE double sum(vd x) {
  double total = 0.0;
  for (int i = 0; i < W / 2; ++i) total += x[i];
  return total;
}

template <class S>
void moments(const RowMoments& op, std::int64_t row_begin, std::int64_t row_end) {
  for (std::int64_t r = row_begin; r < row_end; ++r) {
    const S* x = static_cast<const S*>(op.x.data) + r * op.C;
    vi largest{};  // as integers, the magnitudes of NaNs are above infinity's, which is above all others
    vd total{};
    for_vectors(0, op.C, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
      const vf v = load(x + c, extent);
      const vi magnitude = reinterpret_cast<vi>(abs(v));
      largest = magnitude > largest ? magnitude : largest;
      const Doubles d = to_double(v);
      total = total + (d.low + d.high);
    });
    const double mean = sum(total) / static_cast<double>(op.C);
    vd squares{}, fourths{};
    for_vectors(0, op.C, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
      Doubles d = to_double(load(x + c, extent));
      d.low = d.low - mean;
      d.high = d.high - mean;
      clear_outside(d, extent);
      const vd low = d.low * d.low, high = d.high * d.high;
      squares = squares + (low + high);
      fourths = fourths + (low * low + high * high);
    });
    std::int32_t bits = 0;
    for (int i = 0; i < W; ++i) bits = largest[i] > bits ? largest[i] : bits;
    Moments& result = op.moments[r];
    result.max_abs = static_cast<double>(__builtin_bit_cast(float, bits));
    result.mean = mean;
    result.square_sum = sum(squares);
    result.fourth_sum = sum(fourths);
  }
}

template <class From, class To>
void convert(const void* from, void* to, std::int64_t begin, std::int64_t end) {
  const From* source = static_cast<const From*>(from);
  To* destination = static_cast<To*>(to);
  for_vectors(begin, end, [&](std::int64_t c, auto extent)
                              OUTEFFHOP_BODY { store(destination + c, load(source + c, extent), extent); });
}

void moments_rows(const RowMoments& op, std::int64_t row_begin, std::int64_t row_end) {
  OUTEFFHOP_FOR_STORAGE(op.x.dtype, moments<S>(op, row_begin, row_end));
}

void cast_range(const ConstTensor& from, const Tensor& to, std::int64_t begin, std::int64_t end) {
  if (from.dtype == DType::bf16) {
    OUTEFFHOP_FOR_STORAGE(to.dtype, (convert<bf16, S>(from.data, to.data, begin, end)));
  } else {
    OUTEFFHOP_FOR_STORAGE(to.dtype, (convert<float, S>(from.data, to.data, begin, end)));
  }
}

}  // namespace

const StatisticsTable statistics_table = {moments_rows, cast_range};

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
