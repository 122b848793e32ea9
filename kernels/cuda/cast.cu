// Cast between fp32 and bf16. One thread a vector of eight elements: reads them once, writes them once. It rounds the master
// weights into the storage dtype after each step, 6 bytes a parameter.
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 256;

template <class From, class To>
__global__ void cast_kernel(const From* from,  // (count)
                            To* to,            // (count)
                            std::int64_t count, bool aligned) {
  const std::int64_t first = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector;
  if (first >= count) return;
  const int valid = static_cast<int>(min(std::int64_t{kVector}, count - first));
  store_vector(to + first, load_vector(from + first, valid, aligned), valid, aligned);
}

template <class From, class To>
void convert(const Context& context, const Cast& op) {
  const bool aligned = vectors_aligned(op.from, kVector) && vectors_aligned(op.to, kVector);
  launch({.kernel = "cast",
          .grid = blocks_for(op.count, std::int64_t{kThreads} * kVector),
          .block = kThreads,
          .stream = context.stream},
         cast_kernel<From, To>, static_cast<const From*>(op.from.data), static_cast<To*>(op.to.data), op.count, aligned);
}

}  // namespace

void cast(const Context& context, const Cast& op) {
  for (const DType dtype : {op.from.dtype, op.to.dtype})
    if (dtype != DType::f32 && dtype != DType::bf16) refuse_storage("cast", dtype);
  if (op.count == 0) return;
  if (op.from.dtype == op.to.dtype) {
    const std::size_t bytes = static_cast<std::size_t>(op.count) * size_of(op.to.dtype);
    OUTEFFHOP_CUDA(cudaMemcpyAsync(op.to.data, op.from.data, bytes, cudaMemcpyDeviceToDevice, context.stream));
  } else if (op.from.dtype == DType::f32) {
    convert<float, bf16>(context, op);
  } else {
    convert<bf16, float>(context, op);
  }
}

}  // namespace outeffhop::cuda
