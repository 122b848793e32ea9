#include "kernels/statistics.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu {

OUTEFFHOP_SIMD_TABLE(StatisticsTable, statistics_table)

namespace {

constexpr std::int64_t kGrain = 1 << 12;

/// Rounds once. By way of a float rounded to odd (Boldo, Melquiond 2008): its last bit remembers that something was cut off,
/// so that the second rounding sees on which side of a tie the double lies.
bf16 to_bf16(double value) {
  auto rounded = static_cast<float>(value);
  if (std::isfinite(rounded) && static_cast<double>(rounded) != value) {
    auto bits = std::bit_cast<std::uint32_t>(rounded);
    if (std::fabs(static_cast<double>(rounded)) > std::fabs(value)) --bits;  // toward zero
    rounded = std::bit_cast<float>(bits | 1u);
  }
  return bf16(rounded);
}

template <class From, class To, class Function>
void convert(int threads, const Cast& op, Function function) {
  const auto* from = static_cast<const From*>(op.from.data);
  auto* to = static_cast<To*>(op.to.data);
  parallel_ranges(threads, op.count, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) to[i] = function(from[i]);
  });
}

}  // namespace

void row_moments(int threads, const RowMoments& op) {
  require_storage(op.x.dtype, "row moments");
  const auto& table = statistics_table();
  parallel_ranges(threads, op.rows, 1, [&](std::int64_t begin, std::int64_t end, int) { table.moments(op, begin, end); });
}

void cast(int threads, const Cast& op) {
  const DType from = op.from.dtype, to = op.to.dtype;
  const auto is_storage = [](DType dtype) { return dtype == DType::f32 || dtype == DType::bf16; };
  if (from == to) {
    const auto size = static_cast<std::int64_t>(size_of(from));
    parallel_ranges(threads, op.count, kGrain, [&](std::int64_t begin, std::int64_t end, int) {
      std::memmove(static_cast<char*>(op.to.data) + begin * size, static_cast<const char*>(op.from.data) + begin * size,
                   static_cast<std::size_t>((end - begin) * size));
    });
  } else if (is_storage(from) && is_storage(to)) {
    const auto& table = statistics_table();
    parallel_ranges(threads, op.count, kGrain,
                    [&](std::int64_t begin, std::int64_t end, int) { table.cast(op.from, op.to, begin, end); });
  } else if (from == DType::f64 && to == DType::f32) {
    convert<double, float>(threads, op, [](double value) { return static_cast<float>(value); });
  } else if (from == DType::f64 && to == DType::bf16) {
    convert<double, bf16>(threads, op, to_bf16);
  } else if (from == DType::f32 && to == DType::f64) {
    convert<float, double>(threads, op, [](float value) { return static_cast<double>(value); });
  } else if (from == DType::bf16 && to == DType::f64) {
    convert<bf16, double>(threads, op, [](bf16 value) { return static_cast<double>(static_cast<float>(value)); });
  } else {
    fail(ErrorKind::unsupported, "cannot cast {} to {} on the CPU: casts are among fp64, fp32 and bf16", name_of(from),
         name_of(to));
  }
}

}  // namespace outeffhop::cpu
