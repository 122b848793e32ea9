#include "kernels/cpu/simd/loop.h"
#include "kernels/cpu/simd/tables.h"

namespace outeffhop::cpu::OUTEFFHOP_ISA {

extern const EmbeddingTable embedding_table;

namespace {

/// The row of a table that `ids` picks for row r; a table without ids is one row.
template <class T>
OUTEFFHOP_INLINE T* row_of(T* table, const std::int32_t* ids, std::int64_t r, std::int64_t C) {
  return table ? table + (ids ? static_cast<std::int64_t>(ids[r]) : 0) * C : nullptr;
}

template <class S>
void forward(const EmbeddingForward& op, std::int64_t row_begin, std::int64_t row_end) {
  const std::int64_t C = op.C;
  for (std::int64_t r = row_begin; r < row_end; ++r) {
    const S* base = op.base.data ? static_cast<const S*>(op.base.data) + r * C : nullptr;
    const S* token = row_of(static_cast<const S*>(op.token_table.data), op.token_ids, r, C);
    const S* position = row_of(static_cast<const S*>(op.position_table.data), op.position_ids, r, C);
    const S* type = row_of(static_cast<const S*>(op.type_table.data), op.type_ids, r, C);
    S* out = static_cast<S*>(op.out.data) + r * C;
    for_vectors(0, C, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
      vf v{};
      if (base) v = v + load(base + c, extent);
      if (token) v = v + load(token + c, extent);
      if (position) v = v + load(position + c, extent);
      if (type) v = v + load(type + c, extent);
      store(out + c, v, extent);
    });
  }
}

template <class S>
void backward(const EmbeddingBackward& op, std::int64_t channel_begin, std::int64_t channel_end) {
  const std::int64_t C = op.C;
  for (std::int64_t r = 0; r < op.rows; ++r) {
    const S* d_out = static_cast<const S*>(op.d_out.data) + r * C;
    float* token = op.token_ids && op.token_ids[r] == op.padding_id
                       ? nullptr
                       : row_of(static_cast<float*>(op.d_token_table.data), op.token_ids, r, C);
    float* position = row_of(static_cast<float*>(op.d_position_table.data), op.position_ids, r, C);
    float* type = row_of(static_cast<float*>(op.d_type_table.data), op.type_ids, r, C);
    for_vectors(channel_begin, channel_end, [&](std::int64_t c, auto extent) OUTEFFHOP_BODY {
      const vf d = load(d_out + c, extent);
      if (token) store(token + c, load(token + c, extent) + d, extent);
      if (position) store(position + c, load(position + c, extent) + d, extent);
      if (type) store(type + c, load(type + c, extent) + d, extent);
    });
  }
}

void forward_rows(const EmbeddingForward& op, std::int64_t row_begin, std::int64_t row_end) {
  OUTEFFHOP_FOR_STORAGE(op.out.dtype, forward<S>(op, row_begin, row_end));
}

void backward_channels(const EmbeddingBackward& op, std::int64_t channel_begin, std::int64_t channel_end) {
  OUTEFFHOP_FOR_STORAGE(op.d_out.dtype, backward<S>(op, channel_begin, channel_end));
}

}  // namespace

const EmbeddingTable embedding_table = {forward_rows, backward_channels};

}  // namespace outeffhop::cpu::OUTEFFHOP_ISA
