// The gradient of a bias: d_bias += column sums of d_out, in two kernels. The first cuts the rows into slices and the
// columns into tiles of a warp's 32 vectors of eight; a block sums a slice of a tile, each warp every eighth row, and leaves
// partial sums. The second sums those of each column. How many slices there are depends on the shape alone, never on the
// GPU, so the order of every sum is fixed.
//
// d_out is read once, in 16-byte loads, four under way a thread; partial sums are 4 bytes a column and slice.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_kernels.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kTile = kWarp * kVector;  // columns
constexpr int kInFlight = 4;            // loads of 16 bytes a thread
static_assert(kTile == kThreads);       // a thread sums one column of the tile over the warps

// Slices. Enough blocks to fill a large GPU several times, but no shorter slices than keep kInFlight loads under way.
constexpr std::int64_t kMinRows = kInFlight * kWarps, kMaxSlices = 128, kBlocks = 1024;

__device__ __forceinline__ void add(Vector& sum, const Vector& x) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum.at[i] += x.at[i];
}

/// The sum of a vector's rows `warp`, warp + kWarps, ... below `rows`; `whole` vectors are loaded kInFlight at a time.
template <class T>
__device__ __forceinline__ Vector sum_rows(const T* first, std::int64_t rows, std::int64_t stride, int warp, int valid,
                                           bool whole) {
  Vector sum{};
  std::int64_t row = warp;
  if (whole) {
    for (; row + (kInFlight - 1) * kWarps < rows; row += kInFlight * kWarps) {
      PackedVector<T> x[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) x[k] = load_packed(first + (row + k * kWarps) * stride);
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) add(sum, unpack(x[k]));
    }
  }
  for (; row < rows; row += kWarps) add(sum, load_vector(first + row * stride, valid, whole));
  return sum;
}

// A tile's partial sums lie in the order in which shared memory holds them: element i of lane l's vector at 32 i + l.
template <class T>
__global__ void __launch_bounds__(kThreads)
    partial_sums_kernel(const T* d_out,   // (rows, columns), a row every `stride` elements
                        float* partials,  // (slices, tiles, kTile)
                        std::int64_t rows, std::int64_t columns, std::int64_t stride, std::int64_t rows_a_slice,
                        unsigned tiles, bool aligned) {
  const auto sums = shared_array<float>(0, kWarps * kTile);  // (kWarps, kTile)
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const std::int64_t begin = blockIdx.x / tiles * rows_a_slice;
  const std::int64_t column = std::int64_t{blockIdx.x % tiles} * kTile + lane * kVector;
  const std::int64_t slice_rows = max(std::int64_t{0}, min(rows_a_slice, rows - begin));
  const int valid = static_cast<int>(max(std::int64_t{0}, min(std::int64_t{kVector}, columns - column)));
  const T* first = d_out + begin * stride + column;
  const Vector sum = sum_rows(first, slice_rows, stride, warp, valid, aligned && valid == kVector);
#pragma unroll
  for (int i = 0; i < kVector; ++i) sums[warp * kTile + i * kWarp + lane] = sum.at[i];
  __syncthreads();
  float total = sums[thread];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) total += sums[w * kTile + thread];
  partials[std::int64_t{blockIdx.x} * kTile + thread] = total;
}

// A block adds up 32 columns of a tile: each warp every eighth slice, then the first warp what the warps have.
__global__ void __launch_bounds__(kThreads) add_partial_sums_kernel(const float* partials,  // (slices, tiles, kTile)
                                                                    float* d_bias,          // (columns)
                                                                    std::int64_t columns, int slices, unsigned tiles) {
  const auto sums = shared_array<float>(0, kThreads);  // (kWarps, kWarp)
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const std::int64_t slot = std::int64_t{blockIdx.x} * kWarp + lane, slots = std::int64_t{tiles} * kTile;
  float sum = 0;
#pragma unroll 4
  for (int slice = warp; slice < slices; slice += kWarps) sum += partials[slice * slots + slot];
  sums[thread] = sum;
  __syncthreads();
  if (warp != 0) return;
  float total = sums[lane];
  for (int w = 1; w < kWarps; ++w) total += sums[w * kWarp + lane];
  const std::int64_t column = slot / kTile * kTile + lane * kVector + slot % kTile / kWarp;
  if (column < columns) d_bias[column] += total;
}

}  // namespace

void bias_gradient(const Context& context, ConstTensor d_out, float* d_bias, std::int64_t rows, std::int64_t columns,
                   std::int64_t stride) {
  if (rows * columns == 0) return;
  const std::int64_t tiles = (columns + kTile - 1) / kTile;
  const std::int64_t most = std::clamp<std::int64_t>(kBlocks / tiles, 1, kMaxSlices);
  const std::int64_t rows_a_slice = std::max(kMinRows, (rows + most - 1) / most);
  const std::int64_t slices = (rows + rows_a_slice - 1) / rows_a_slice;
  float* partials = context.workspace.array<float>(static_cast<std::size_t>(slices * tiles * kTile));
  const bool aligned = vectors_aligned(d_out, stride);
  with_storage(d_out.dtype, "bias gradient", [&](auto element) {
    using T = decltype(element);
    launch({.kernel = "bias_gradient_partial_sums",
            .grid = blocks_for(slices * tiles, 1),
            .block = kThreads,
            .shared_bytes = kWarps * kTile * sizeof(float),
            .stream = context.stream},
           partial_sums_kernel<T>, static_cast<const T*>(d_out.data), partials, rows, columns, stride, rows_a_slice,
           static_cast<unsigned>(tiles), aligned);
  });
  launch({.kernel = "bias_gradient_add_partial_sums",
          .grid = blocks_for(tiles * kTile, kWarp),
          .block = kThreads,
          .shared_bytes = kThreads * sizeof(float),
          .stream = context.stream},
         add_partial_sums_kernel, partials, d_bias, columns, static_cast<int>(slices), static_cast<unsigned>(tiles));
}

}  // namespace outeffhop::cuda
