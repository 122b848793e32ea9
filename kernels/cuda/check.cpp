// What the CUDA backend says when something is wrong: .cu files have no fmt.
#include "kernels/cuda/check.h"

#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();
  switch (status) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
      fail(ErrorKind::unsupported, "device \"cuda\" is not on this machine: {}; use \"cpu\"", cudaGetErrorString(status));
    case cudaErrorMemoryAllocation:
      fail(ErrorKind::unsupported, "the GPU has no memory left: {} failed", call);
    default:
      fail(ErrorKind::internal, "{} failed: {}", call, cudaGetErrorString(status));
  }
}

void refuse_storage(const char* op, DType dtype) {
  fail(ErrorKind::unsupported, "{} on CUDA takes fp32 or bf16 elements, not {}", op, name_of(dtype));
}

void require_same(DType expected, const ConstTensor& given, const char* op, const char* name) {
  if (given && given.dtype != expected)
    fail(ErrorKind::unsupported, "{} on CUDA needs {} in {}, but it is {}", op, name, name_of(expected),
         name_of(given.dtype));
}

std::uint32_t row_count(std::int64_t rows, const char* op) {
  constexpr std::int64_t kMostBlocks = 0x7fffffff;
  if (rows > kMostBlocks) fail(ErrorKind::unsupported, "{} on CUDA takes up to {} rows, not {}", op, kMostBlocks, rows);
  return static_cast<std::uint32_t>(rows);
}

}  // namespace outeffhop::cuda
