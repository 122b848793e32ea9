// RowMoments. One block a row, of as many threads as keep the whole row in their registers, four vectors of eight each, up
// to C = 16384: x is read from memory once, though the central moments need the mean first. What is beyond of longer rows is
// read a second time, from the L2 cache while it holds what the running blocks read.
//
// Each thread adds its elements in order, then lanes, then warps: the same bits every time. Sums are in double, as a mean of
// 1000 would leave an fp32 fourth moment no digits. That is five fp64 operations and two conversions an element: about the
// time that the bytes of bf16 take on a GPU with full-rate fp64 (sm_80, sm_90), several times that on others. It is
// telemetry.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kTile = 4;  // vectors a thread has in registers at a time

template <class T>
__global__ void __launch_bounds__(kMaxThreads) row_moments_kernel(const T* x,        // (rows, C)
                                                                  Moments* moments,  // (rows)
                                                                  std::int64_t C, bool aligned) {
  const auto largest_scratch = shared_array<float>(0, kReduceValues);
  const auto scratch = shared_array<double>(kReduceValues * sizeof(double), kReduceValues);
  const T* row = x + std::int64_t{blockIdx.x} * C;
  const std::int64_t first = std::int64_t{threadIdx.x} * kVector, stride = std::int64_t{blockDim.x} * kVector;
  struct Tile {
    Vector at[kTile];
  };
  const auto valid_at = [&](std::int64_t channel) {
    return static_cast<int>(max(std::int64_t{0}, min(std::int64_t{kVector}, C - channel)));
  };
  const auto load_tile = [&](std::int64_t begin) {
    Tile tile;
#pragma unroll
    for (int k = 0; k < kTile; ++k)
      tile.at[k] = load_vector(row + begin + k * stride, valid_at(begin + k * stride), aligned);
    return tile;
  };
  const auto visit_tile = [&](const Tile& tile, std::int64_t begin, auto&& f) {
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      const int valid = valid_at(begin + k * stride);
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        if (i < valid) f(tile.at[k].at[i]);
    }
  };
  const Tile kept = load_tile(first);
  // f(element) for each element of this thread, always in the same order.
  const auto visit = [&](auto&& f) {
    visit_tile(kept, first, f);
    for (std::int64_t begin = first + kTile * stride; begin < C; begin += kTile * stride)
      visit_tile(load_tile(begin), begin, f);
  };

  Moments result;
  float largest = 0.0f;
  visit([&](float element) {
    largest = Max{}(largest, std::fabs(element));
    result.mean += static_cast<double>(element);
  });
  result.max_abs = static_cast<double>(block_reduce(largest, largest_scratch, Max{}));
  result.mean = block_reduce(result.mean, scratch, Sum{}) / static_cast<double>(C);
  visit([&](float element) {
    const double deviation = static_cast<double>(element) - result.mean, square = deviation * deviation;
    result.square_sum += square;
    result.fourth_sum += square * square;
  });
  result.square_sum = block_reduce(result.square_sum, scratch, Sum{});
  result.fourth_sum = block_reduce(result.fourth_sum, scratch, Sum{});
  if (threadIdx.x == 0) moments[blockIdx.x] = result;
}

}  // namespace

void row_moments(const Context& context, const RowMoments& op) {
  if (op.rows == 0) return;
  const std::int64_t warps = (op.C + kTile * kVector * kWarp - 1) / (kTile * kVector * kWarp);
  const auto threads = static_cast<unsigned>(std::min(std::max(warps, std::int64_t{1}) * kWarp, std::int64_t{kMaxThreads}));
  with_storage(op.x.dtype, "row moments", [&](auto element) {
    using T = decltype(element);
    launch({.kernel = "row_moments",
            .grid = static_cast<unsigned>(op.rows),
            .block = threads,
            .shared_bytes = 2 * kReduceValues * sizeof(double),
            .stream = context.stream},
           row_moments_kernel<T>, static_cast<const T*>(op.x.data), op.moments, op.C, vectors_aligned(op.x, op.C));
  });
}

}  // namespace outeffhop::cuda
