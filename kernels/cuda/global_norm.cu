// GlobalNorm, in two passes: the sum of squares of each block of kGlobalNormBlock elements, one block of threads each, and
// the sum of those sums, by one block. Reads the gradient once. Squares of fp32 are exact in double, so that only the order
// of additions makes the bits, and that is fixed: it depends on the count, and on whether the gradient begins at a multiple
// of 16 bytes.
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/words.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kThreadsOfLastPass = 1024;  // 110 million gradients leave 6,700 sums: seven a thread
constexpr int kGroup = 4;                 // 16-byte loads that a thread has under way
constexpr int kScratchBytes = kReduceValues * static_cast<int>(sizeof(double));

__device__ __forceinline__ double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

__global__ __launch_bounds__(kThreads) void square_sums_kernel(const float* gradient,  // (count)
                                                               double* sums,           // (gridDim.x)
                                                               std::int64_t count, bool aligned) {
  const std::int64_t begin = std::int64_t{blockIdx.x} * kGlobalNormBlock;
  const float* mine = gradient + begin;
  const int thread = static_cast<int>(threadIdx.x), elements = static_cast<int>(min(kGlobalNormBlock, count - begin));
  const int words = aligned ? elements / 4 : 0;
  double sum = 0.0;
  for (int first = thread; first < words; first += kGroup * kThreads) {
    Words group[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (const int k = first + j * kThreads; k < words) group[j] = reinterpret_cast<const Words*>(mine)[k];
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (first + j * kThreads < words)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += square(element_of<float>(group[j], i));
  }
#pragma unroll 1
  for (int i = 4 * words + thread; i < elements; i += kThreads) sum += square(mine[i]);
  sum = block_reduce(sum, shared_array<double>(0, kReduceValues), Sum{});
  if (thread == 0) sums[blockIdx.x] = sum;
}

__global__ __launch_bounds__(kThreadsOfLastPass) void add_square_sums_kernel(const double* sums,  // (count)
                                                                             std::int64_t count, StepControl* control) {
  const double sum = block_sum(sums, count, shared_array<double>(0, kReduceValues));
  if (threadIdx.x == 0) control->gradient_square_sum = sum;
}

}  // namespace

void global_norm(const Context& context, const GlobalNorm& op) {
  require_same(DType::f32, op.gradient, "the global norm", "the gradient");
  const unsigned blocks = blocks_for(op.count, kGlobalNormBlock);
  double* sums = context.workspace.array<double>(blocks);
  const auto* gradient = static_cast<const float*>(op.gradient.data);
  const bool aligned = reinterpret_cast<std::uintptr_t>(gradient) % 16 == 0;
  if (blocks > 0)
    launch({.kernel = "square_sums",
            .grid = blocks,
            .block = kThreads,
            .shared_bytes = kScratchBytes,
            .stream = context.stream},
           square_sums_kernel, gradient, sums, op.count, aligned);
  launch({.kernel = "add_square_sums",
          .grid = 1,
          .block = kThreadsOfLastPass,
          .shared_bytes = kScratchBytes,
          .stream = context.stream},
         add_square_sums_kernel, sums, std::int64_t{blocks}, op.control);
}

}  // namespace outeffhop::cuda
