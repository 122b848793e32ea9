// The bias in every row of a result, for the product to be added to: where no epilogue takes the bias. One thread a vector
// of eight columns; writes the result once, and reads the bias, which the caches hold.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_kernels.h"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 256;

template <class B, class T>
__global__ void spread_bias_kernel(const B* bias,  // (columns)
                                   T* out,         // (rows, columns)
                                   std::int64_t rows, std::int64_t columns, bool bias_aligned, bool out_aligned) {
  const std::int64_t vectors = (columns + kVector - 1) / kVector;
  const std::int64_t number = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (number >= rows * vectors) return;
  const std::int64_t row = number / vectors, column = number % vectors * kVector;
  const int valid = static_cast<int>(min(std::int64_t{kVector}, columns - column));
  store_vector(out + row * columns + column, load_vector(bias + column, valid, bias_aligned), valid, out_aligned);
}

}  // namespace

void spread_bias(const Context& context, ConstTensor bias, Tensor out, std::int64_t rows, std::int64_t columns) {
  if (rows * columns == 0) return;
  const auto spread = [&](auto from, auto to) {
    using B = decltype(from);
    using T = decltype(to);
    launch({.kernel = "spread_bias",
            .grid = blocks_for(rows * ((columns + kVector - 1) / kVector), kThreads),
            .block = kThreads,
            .stream = context.stream},
           spread_bias_kernel<B, T>, static_cast<const B*>(bias.data), static_cast<T*>(out.data), rows, columns,
           vectors_aligned(bias, kVector), vectors_aligned(out, columns));
  };
  with_storage(bias.dtype, "bias", [&](auto from) {
    if (out.dtype == DType::f32) return spread(from, float{});
    require_same(out.dtype, bias, "linear", "the bias");
    spread(from, from);
  });
}

}  // namespace outeffhop::cuda
