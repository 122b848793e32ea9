// The one way to launch a kernel: launch(shape, kernel, arguments...). CUDA's own syntax is used nowhere, as the tests
// compile the same sources as plain C++ and have a launch() of their own (tests/simt).
#pragma once

#include "kernels/cuda/check.h"
#include "kernels/cuda/launch_shape.h"

namespace outeffhop::cuda {

template <class... Parameters, class... Arguments>
void launch(const LaunchShape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  constexpr std::size_t kWithoutAsking = 48 * 1024;
  if (shape.shared_bytes > kWithoutAsking) {
    OUTEFFHOP_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shape.shared_bytes)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), shape.kernel);
}

}  // namespace outeffhop::cuda
