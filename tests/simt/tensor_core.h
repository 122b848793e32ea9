// What the stand-ins of kernels/cuda/ptx call.
#pragma once

#include <cstdint>

#include "tests/simt/executor.h"

namespace outeffhop::simt {

/// As mma.m16n8k16 with bf16 operands, fp32 accumulators: d += a b of one lane's fragments (kernels/cuda/ptx/fragments.cuh).
void multiply_fragments(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], const Where& where);

/// As ldmatrix.x`count` (kernels/cuda/ptx/load_matrix.cuh).
void load_matrices(std::uint32_t* to, unsigned count, bool transposed, const void* row, const Where& where);

/// As cp.async of `bytes` bytes.
void copy_async(void* shared, const void* global, int bytes, int source_bytes, const Where& where);

}  // namespace outeffhop::simt
