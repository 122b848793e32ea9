// In place of kernels/cuda/ptx/bf16_pair.cuh.
#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace outeffhop::cuda::ptx {

inline std::uint32_t bf16_pair(float low, float high) {
  return bf16(low).bits | static_cast<std::uint32_t>(bf16(high).bits) << 16;
}

inline std::uint32_t bf16_pair_positive(float low, float high) {
  return bf16_pair(low < 0.0f ? 0.0f : low, high < 0.0f ? 0.0f : high);
}

}  // namespace outeffhop::cuda::ptx
