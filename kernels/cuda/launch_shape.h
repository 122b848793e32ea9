// How many threads a kernel runs on, and where.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace outeffhop::cuda {

struct LaunchShape {
  const char* kernel;  ///< its name, for errors
  dim3 grid, block;
  std::size_t shared_bytes = 0;  ///< dynamic shared memory; more than 48 KiB is opted into
  cudaStream_t stream = nullptr;
};

/// Blocks that it takes for `count` items at `each` a block.
inline unsigned blocks_for(std::int64_t count, std::int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

}  // namespace outeffhop::cuda
