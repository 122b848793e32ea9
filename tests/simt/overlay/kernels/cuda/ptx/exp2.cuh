// In place of kernels/cuda/ptx/exp2.cuh.
#pragma once

#include <cmath>

namespace outeffhop::cuda::ptx {

inline float exp2_flushed(float x) { return x < -126.0f ? 0.0f : std::exp2(x); }

}  // namespace outeffhop::cuda::ptx
