#include "kernels/gather.h"

#include <cstring>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/parallel.h"

namespace outeffhop::cpu {

void gather_rows(int threads, const GatherRows& op) {
  require_same(op.out.dtype, op.x, "gathering rows", "x");
  const std::size_t row_bytes = static_cast<std::size_t>(op.C) * size_of(op.out.dtype);
  const auto* from = static_cast<const char*>(op.x.data);
  auto* to = static_cast<char*>(op.out.data);
  parallel_ranges(threads, op.count, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      char* row = to + static_cast<std::size_t>(i) * row_bytes;
      if (op.index[i] < 0)
        std::memset(row, 0, row_bytes);
      else
        std::memcpy(row, from + static_cast<std::size_t>(op.index[i]) * row_bytes, row_bytes);
    }
  });
}

void scatter_rows(int threads, const ScatterRows& op) {
  require_same(op.d_x.dtype, op.d_out, "scattering rows", "d_out");
  const std::size_t row_bytes = static_cast<std::size_t>(op.C) * size_of(op.d_x.dtype);
  const auto* from = static_cast<const char*>(op.d_out.data);
  auto* to = static_cast<char*>(op.d_x.data);
  parallel_ranges(threads, op.rows, 1, [&](std::int64_t begin, std::int64_t end, int) {
    std::memset(to + static_cast<std::size_t>(begin) * row_bytes, 0, static_cast<std::size_t>(end - begin) * row_bytes);
  });
  parallel_ranges(threads, op.count, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i) {
      if (op.index[i] < 0) continue;
      std::memcpy(to + static_cast<std::size_t>(op.index[i]) * row_bytes, from + static_cast<std::size_t>(i) * row_bytes,
                  row_bytes);
    }
  });
}

}  // namespace outeffhop::cpu
