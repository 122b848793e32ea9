#include "kernels/embedding.h"

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu {

OUTEFFHOP_SIMD_TABLE(EmbeddingTable, embedding_table)

void embedding_forward(int threads, const EmbeddingForward& op) {
  const char* name = "embedding";
  require_storage(op.out.dtype, name);
  require_same(op.out.dtype, op.base, name, "base");
  require_same(op.out.dtype, op.token_table, name, "the token table");
  require_same(op.out.dtype, op.position_table, name, "the position table");
  require_same(op.out.dtype, op.type_table, name, "the type table");
  const auto& table = embedding_table();
  parallel_ranges(threads, op.rows, 1,
                  [&](std::int64_t begin, std::int64_t end, int) { table.forward(op, begin, end); });
}

void embedding_backward(int threads, const EmbeddingBackward& op) {
  const char* name = "embedding backward";
  require_storage(op.d_out.dtype, name);
  require_same(DType::f32, op.d_token_table, name, "the token table's gradient");
  require_same(DType::f32, op.d_position_table, name, "the position table's gradient");
  require_same(DType::f32, op.d_type_table, name, "the type table's gradient");
  const auto& table = embedding_table();
  // Each member owns a slice of the channels, whole cache lines wide, and walks the rows in order: no two write the same
  // element, and the order of additions does not depend on the team.
  parallel_ranges(threads, op.C, 32,
                  [&](std::int64_t begin, std::int64_t end, int) { table.backward(op, begin, end); });
}

}  // namespace outeffhop::cpu
