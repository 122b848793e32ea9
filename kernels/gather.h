// Rows picked by index: the labelled positions of a batch, before the vocabulary-sized head.
#pragma once

#include "kernels/tensor.h"

namespace outeffhop {

/// out[i] = x[index[i]] for i < count; rows count..padded_count-1 of out are written as 0.
struct GatherRows {
  std::int64_t count = 0, padded_count = 0, C = 0;
  const std::int32_t* index = nullptr;  ///< (count) distinct row numbers of x
  ConstTensor x;                        ///< (rows, C)
  Tensor out;                           ///< (padded_count, C)
};

/// The transpose of GatherRows: d_x[index[i]] = d_out[i], every other row of d_x is written as 0.
struct ScatterRows {
  std::int64_t count = 0, rows = 0, C = 0;
  const std::int32_t* index = nullptr;  ///< (count) distinct
  ConstTensor d_out;                    ///< (>= count, C)
  Tensor d_x;                           ///< (rows, C), written
};

}  // namespace outeffhop
