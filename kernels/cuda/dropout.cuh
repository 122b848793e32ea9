// Dropout in registers, the linear mapping of kernels/random.h: one Philox block for each vector of eight channels.
#pragma once

#include "kernels/cuda/vector.cuh"
#include "kernels/dropout.h"

namespace outeffhop::cuda {

/// Whose random numbers a row takes: row `row` of global sample `sample`. Any where there is no dropout.
struct SampleRow {
  std::uint64_t sample = 0;
  std::uint32_t row = 0;
};
__device__ __forceinline__ SampleRow sample_row(const Dropout& dropout, std::uint32_t row, std::uint32_t rows_a_sample) {
  if (dropout.threshold == 0) return {};
  return {dropout.sample_ids[row / rows_a_sample], row % rows_a_sample};
}

/// x = dropout(x) for channels [channel, channel + kVector) of row `row` of `sample`; channel is a multiple of kVector.
__device__ __forceinline__ void drop_vector(Vector& x, const Dropout& dropout, std::uint64_t sample, std::int64_t row,
                                            std::int64_t channel) {
  const PhiloxBlock random =
      sample_block(dropout.key, sample, static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(channel / kVector));
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const std::uint32_t bits = (random.w[i / 2] >> (16 * (i % 2))) & 0xffffu;
    x.at[i] = bits < dropout.threshold ? 0.0f : x.at[i] * dropout.scale;
  }
}

}  // namespace outeffhop::cuda
