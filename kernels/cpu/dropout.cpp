#include "kernels/dropout.h"

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu {

OUTEFFHOP_SIMD_TABLE(DropoutTable, dropout_table)

void dropout_add(int threads, const DropoutAdd& op) {
  const char* name = "dropout";
  require_storage(op.out.dtype, name);
  require_same(op.out.dtype, op.x, name, "x");
  require_same(op.out.dtype, op.residual, name, "residual");
  const auto& table = dropout_table();
  parallel_ranges(threads, op.B * op.T, 1, [&](std::int64_t begin, std::int64_t end, int) { table.add(op, begin, end); });
}

}  // namespace outeffhop::cpu
