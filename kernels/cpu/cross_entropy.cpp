#include "kernels/cross_entropy.h"

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu {

OUTEFFHOP_SIMD_TABLE(CrossEntropyTable, cross_entropy_table)

void cross_entropy(int threads, Scratch& scratch, const CrossEntropy& op) {
  require_storage(op.logits.dtype, "cross-entropy");
  require_same(DType::f32, op.losses, "cross-entropy", "losses");
  require(op.row_stride >= op.V, "cross-entropy over {} columns cannot have a row stride of {}", op.V, op.row_stride);
  double* losses = scratch.get<double>(op.rows);
  const auto& table = cross_entropy_table();
  // Rows without a target cost nothing and lie together at the end: single rows are dealt out in turn.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (std::int64_t r = 0; r < op.rows; ++r) table.rows(op, r, r + 1, losses);
  if (auto* out = static_cast<float*>(op.losses.data))
    for (std::int64_t r = 0; r < op.rows; ++r) out[r] = static_cast<float>(losses[r]);
  if (op.loss_sum) {
    double sum = *op.loss_sum;
    for (std::int64_t r = 0; r < op.rows; ++r) sum += losses[r];
    *op.loss_sum = sum;
  }
}

}  // namespace outeffhop::cpu
