// What the CUDA backend says when something is wrong: .cu files have no fmt.
#include "kernels/cuda/check.h"

#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {
namespace {

constexpr const char* kWayOut = "train on the CPU (--device cpu)";

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

std::string installed_driver() {
  int version = 0;  // stays 0 where there is none
  (void)cudaDriverGetVersion(&version);
  return version == 0 ? "none" : "one for CUDA " + version_text(version);
}

}  // namespace

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();
  switch (status) {
    case cudaErrorNoDevice:
      fail(ErrorKind::unsupported, "device \"cuda\" needs an NVIDIA GPU, and the driver lists none: {}", kWayOut);
    case cudaErrorInsufficientDriver:
      fail(ErrorKind::unsupported, "device \"cuda\" needs a driver for CUDA {}, and this machine has {}: {}",
           version_text(CUDART_VERSION), installed_driver(), kWayOut);
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
