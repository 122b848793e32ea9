// EmbeddingForward. One thread a vector of eight channels; nothing is shared. Each of the (at most) four terms is read once
// and out is written once: the rows of small tables, and those of frequent tokens, come from the L2 cache.
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 256;

/// The row of a table that `ids` picks for row r; without ids it is row 0.
__device__ __forceinline__ std::int64_t row_of(const std::int32_t* ids, std::int64_t r) { return ids ? ids[r] : 0; }

template <class T>
__global__ void embedding_forward_kernel(const T* base,                     // (rows, C) or null
                                         const T* token_table,              // (V, C) or null
                                         const std::int32_t* token_ids,     // (rows)
                                         const T* position_table,           // (P, C) or null
                                         const std::int32_t* position_ids,  // (rows)
                                         const T* type_table,               // (types, C) or null
                                         const std::int32_t* type_ids,      // (rows) or null
                                         T* out,                            // (rows, C)
                                         std::int64_t rows, std::int64_t C, bool aligned) {
  const std::int64_t vectors = (C + kVector - 1) / kVector;
  const std::int64_t number = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (number >= rows * vectors) return;
  const std::int64_t row = number / vectors, channel = number % vectors * kVector;
  const int valid = static_cast<int>(min(std::int64_t{kVector}, C - channel));
  Vector sum{};
  const auto add = [&](const T* tensor, std::int64_t tensor_row) {
    const Vector term = load_vector(tensor + tensor_row * C + channel, valid, aligned);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum.at[i] += term.at[i];
  };
  if (base) add(base, row);
  if (token_table) add(token_table, row_of(token_ids, row));
  if (position_table) add(position_table, row_of(position_ids, row));
  if (type_table) add(type_table, row_of(type_ids, row));
  store_vector(out + row * C + channel, sum, valid, aligned);
}

}  // namespace

void embedding_forward(const Context& context, const EmbeddingForward& op) {
  const char* name = "embedding";
  require_same(op.out.dtype, op.base, name, "base");
  require_same(op.out.dtype, op.token_table, name, "the token table");
  require_same(op.out.dtype, op.position_table, name, "the position table");
  require_same(op.out.dtype, op.type_table, name, "the type table");
  const std::int64_t vectors = (op.C + kVector - 1) / kVector;
  if (op.rows * op.C == 0) return;
  bool aligned = vectors_aligned(op.out, op.C);
  for (const ConstTensor& term : {op.base, op.token_table, op.position_table, op.type_table})
    aligned = aligned && vectors_aligned(term, op.C);
  with_storage(op.out.dtype, name, [&](auto element) {
    using T = decltype(element);
    launch({.kernel = "embedding_forward",
            .grid = blocks_for(op.rows * vectors, kThreads),
            .block = kThreads,
            .stream = context.stream},
           embedding_forward_kernel<T>, static_cast<const T*>(op.base.data), static_cast<const T*>(op.token_table.data),
           op.token_ids, static_cast<const T*>(op.position_table.data), op.position_ids,
           static_cast<const T*>(op.type_table.data), op.type_ids, static_cast<T*>(op.out.data), op.rows, op.C, aligned);
  });
}

}  // namespace outeffhop::cuda
