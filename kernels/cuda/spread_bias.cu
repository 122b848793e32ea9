// The bias in every row of a result, for the product to be added to: where no epilogue takes the bias. A block has a tile of
// columns, a vector of eight a thread, in a few rows. Reads the bias once for these rows, and writes the result once.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_kernels.h"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 128, kTile = kThreads * kVector;  // columns
constexpr std::int64_t kRows = 16;                         // of a block

template <class B, class T>
__global__ void spread_bias_kernel(const B* bias,  // (columns)
                                   T* out,         // (rows, columns), a row every `stride` elements
                                   std::int64_t rows, std::int64_t columns, std::int64_t stride, unsigned tiles,
                                   bool bias_aligned, bool out_aligned) {
  const std::int64_t column = std::int64_t{blockIdx.x % tiles} * kTile + threadIdx.x * kVector;
  if (column >= columns) return;
  const int valid = static_cast<int>(min(std::int64_t{kVector}, columns - column));
  const Vector values = load_vector(bias + column, valid, bias_aligned);
  const std::int64_t begin = blockIdx.x / tiles * kRows, end = min(begin + kRows, rows);
  for (std::int64_t row = begin; row < end; ++row) store_vector(out + row * stride + column, values, valid, out_aligned);
}

}  // namespace

void spread_bias(const Context& context, ConstTensor bias, Tensor out, std::int64_t rows, std::int64_t columns,
                 std::int64_t stride) {
  if (rows * columns == 0) return;
  const std::int64_t tiles = (columns + kTile - 1) / kTile;
  const auto spread = [&](auto from, auto to) {
    using B = decltype(from);
    using T = decltype(to);
    launch({.kernel = "spread_bias",
            .grid = blocks_for(rows, kRows) * static_cast<unsigned>(tiles),
            .block = kThreads,
            .stream = context.stream},
           spread_bias_kernel<B, T>, static_cast<const B*>(bias.data), static_cast<T*>(out.data), rows, columns, stride,
           static_cast<unsigned>(tiles), vectors_aligned(bias, kVector), vectors_aligned(out, stride));
  };
  with_storage(bias.dtype, "bias", [&](auto from) {
    if (out.dtype == DType::f32) return spread(from, float{});
    require_same(out.dtype, bias, "linear", "the bias");
    spread(from, from);
  });
}

}  // namespace outeffhop::cuda
