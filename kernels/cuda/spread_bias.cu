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
                                   T* out,         // (rows, columns), a row every `stride` elements
                                   std::int64_t columns, std::int64_t stride, std::uint32_t vectors,
                                   std::uint32_t vectors_a_row, bool bias_aligned, bool out_aligned) {
  const std::uint32_t number = blockIdx.x * kThreads + threadIdx.x;
  if (number >= vectors) return;
  const std::int64_t row = number / vectors_a_row, column = std::int64_t{number % vectors_a_row} * kVector;
  const int valid = static_cast<int>(min(std::int64_t{kVector}, columns - column));
  store_vector(out + row * stride + column, load_vector(bias + column, valid, bias_aligned), valid, out_aligned);
}

}  // namespace

void spread_bias(const Context& context, ConstTensor bias, Tensor out, std::int64_t rows, std::int64_t columns,
                 std::int64_t stride) {
  if (rows * columns == 0) return;
  const std::int64_t vectors_a_row = (columns + kVector - 1) / kVector;
  const std::uint32_t vectors = row_count(rows * vectors_a_row, "linear");
  const auto spread = [&](auto from, auto to) {
    using B = decltype(from);
    using T = decltype(to);
    launch({.kernel = "spread_bias", .grid = blocks_for(vectors, kThreads), .block = kThreads, .stream = context.stream},
           spread_bias_kernel<B, T>, static_cast<const B*>(bias.data), static_cast<T*>(out.data), columns, stride, vectors,
           static_cast<std::uint32_t>(vectors_a_row), vectors_aligned(bias, kVector), vectors_aligned(out, stride));
  };
  with_storage(bias.dtype, "bias", [&](auto from) {
    if (out.dtype == DType::f32) return spread(from, float{});
    require_same(out.dtype, bias, "linear", "the bias");
    spread(from, from);
  });
}

}  // namespace outeffhop::cuda
