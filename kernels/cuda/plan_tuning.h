// Which of the algorithms that cuBLASLt offers is the fastest: its own guess is within a few per cent in most shapes, and
// far off in some.
#pragma once

#include "kernels/cuda/product_plans.h"

namespace outeffhop::cuda {

/// Times each algorithm on the operands of `product`, into memory of its own, and returns the place of the fastest; of
/// nearly equal ones the first. Those that fail are left out: `algorithms.size()` where all do. 0 where there is one to
/// choose from, or no memory for a second result. Waits for the stream.
std::size_t fastest(const ProductStream& on, const ProductPlan& plan, const std::vector<cublasLtMatmulAlgo_t>& algorithms,
                    const Product& product);

}  // namespace outeffhop::cuda
