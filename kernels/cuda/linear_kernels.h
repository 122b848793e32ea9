// Kernels around the products of linear layers.
#pragma once

#include "kernels/cuda/context.h"
#include "kernels/tensor.h"

namespace outeffhop::cuda {

/// Every row of out (rows, columns) = bias (columns). out is fp32 or of bias's type; its rows begin every `stride` elements.
void spread_bias(const Context& context, ConstTensor bias, Tensor out, std::int64_t rows, std::int64_t columns,
                 std::int64_t stride);

/// d_bias (columns), fp32, += column sums of d_out (rows, columns), whose rows begin every `stride` elements.
void bias_gradient(const Context& context, ConstTensor d_out, float* d_bias, std::int64_t rows, std::int64_t columns,
                   std::int64_t stride);

/// *largest = max |x|, a device scalar; NaN if x has one.
void max_abs(const Context& context, ConstTensor x, std::int64_t count, float* largest);

}  // namespace outeffhop::cuda
