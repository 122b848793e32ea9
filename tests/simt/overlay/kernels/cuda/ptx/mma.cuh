// In place of kernels/cuda/ptx/mma.cuh.
#pragma once

#include "kernels/cuda/ptx/fragments.cuh"
#include "tests/simt/tensor_core.h"

namespace outeffhop::cuda {

inline void mma_16x8x16(FragmentC& d, const FragmentA& a, const FragmentB& b,
                        const simt::Where& where = simt::Where::current()) {
  simt::multiply_fragments(d.at, a.pair, b.pair, where);
}

}  // namespace outeffhop::cuda
