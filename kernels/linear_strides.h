// How far apart the rows of a linear layer's result lie, as every backend reads and checks it.
#pragma once

#include "kernels/error.h"
#include "kernels/linear.h"

namespace outeffhop {

inline std::int64_t checked_stride(std::int64_t given, std::int64_t out_features) {
  const std::int64_t stride = given ? given : out_features;
  require(stride >= out_features, "rows of {} features cannot begin every {} elements", out_features, stride);
  return stride;
}

/// Elements from one row of op.out to the next.
inline std::int64_t out_stride(const LinearForward& op) {
  const std::int64_t stride = checked_stride(op.out_stride, op.out_features);
  require(stride == op.out_features || (op.activation == Activation::none && !op.pre && !op.max_abs),
          "linear with an activation, pre or max_abs takes rows of {} features end to end, not every {} elements",
          op.out_features, stride);
  return stride;
}

/// Elements from one row of op.d_out to the next.
inline std::int64_t d_out_stride(const LinearBackward& op) { return checked_stride(op.d_out_stride, op.out_features); }

}  // namespace outeffhop
