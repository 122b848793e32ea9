// DropoutAdd. One thread a vector of eight channels; nothing is shared. Reads x and residual and writes out once each.
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 256;

// out may be x or residual: each thread reads its eight elements before it writes them.
template <class T>
__global__ void dropout_add_kernel(const T* x,         // (B, T, C)
                                   const T* residual,  // (B, T, C) or null
                                   T* out,             // (B, T, C)
                                   Dropout dropout, std::int64_t rows, std::int64_t rows_a_sample, std::int64_t C,
                                   bool aligned) {
  const std::int64_t vectors = (C + kVector - 1) / kVector;
  const std::int64_t number = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (number >= rows * vectors) return;
  const std::int64_t row = number / vectors, channel = number % vectors * kVector, first = row * C + channel;
  const int valid = static_cast<int>(min(std::int64_t{kVector}, C - channel));
  Vector value = load_vector(x + first, valid, aligned);
  if (dropout.threshold != 0)
    drop_vector(value, dropout, dropout.sample_ids[row / rows_a_sample], row % rows_a_sample, channel);
  if (residual) {
    const Vector added = load_vector(residual + first, valid, aligned);
#pragma unroll
    for (int i = 0; i < kVector; ++i) value.at[i] += added.at[i];
  }
  store_vector(out + first, value, valid, aligned);
}

}  // namespace

void dropout_add(const Context& context, const DropoutAdd& op) {
  require_same(op.x.dtype, op.residual, "dropout", "the residual");
  require_same(op.x.dtype, op.out, "dropout", "its output");
  const std::int64_t rows = op.B * op.T, vectors = (op.C + kVector - 1) / kVector;
  if (rows * op.C == 0) return;
  const bool aligned = vectors_aligned(op.x, op.C) && vectors_aligned(op.residual, op.C) && vectors_aligned(op.out, op.C);
  with_storage(op.x.dtype, "dropout", [&](auto element) {
    using T = decltype(element);
    launch(
        {.kernel = "dropout_add", .grid = blocks_for(rows * vectors, kThreads), .block = kThreads, .stream = context.stream},
        dropout_add_kernel<T>, static_cast<const T*>(op.x.data), static_cast<const T*>(op.residual.data),
        static_cast<T*>(op.out.data), op.dropout, rows, op.T, op.C, aligned);
  });
}

}  // namespace outeffhop::cuda
