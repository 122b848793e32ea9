// The largest magnitude of a tensor, read once. Magnitudes are compared as the integers of their bits, which have the same
// order and put NaN above all; so an integer maximum, which does not depend on the order, collects what the blocks found.
#include "kernels/cuda/check.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/linear_kernels.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 256, kVectors = 4;  // vectors a thread

template <class T>
__global__ void max_abs_kernel(const T* x,    // (count)
                               int* largest,  // (1), bits
                               std::int64_t count, bool aligned) {
  const auto scratch = shared_array<int>(0, kReduceValues);
  int found = 0;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const std::int64_t first = ((std::int64_t{blockIdx.x} * kVectors + k) * kThreads + threadIdx.x) * kVector;
    const int valid = static_cast<int>(max(std::int64_t{0}, min(std::int64_t{kVector}, count - first)));
    const Vector v = load_vector(x + first, valid, aligned);
#pragma unroll
    for (int i = 0; i < kVector; ++i) found = max(found, __float_as_int(fabsf(v.at[i])));
  }
  found = block_reduce(found, scratch, Max{});
  if (threadIdx.x == 0) atomicMax(largest, found);
}

}  // namespace

void max_abs(const Context& context, ConstTensor x, std::int64_t count, float* largest) {
  OUTEFFHOP_CUDA(cudaMemsetAsync(largest, 0, sizeof *largest, context.stream));
  if (count == 0) return;
  with_storage(x.dtype, "largest magnitude", [&](auto element) {
    using T = decltype(element);
    launch({.kernel = "max_abs",
            .grid = blocks_for(count, kThreads * kVectors * kVector),
            .block = kThreads,
            .shared_bytes = kReduceValues * sizeof(int),
            .stream = context.stream},
           max_abs_kernel<T>, static_cast<const T*>(x.data), reinterpret_cast<int*>(largest), count,
           vectors_aligned(x, kVector));
  });
}

}  // namespace outeffhop::cuda
