// Rows picked by index: the labelled positions of a batch, before the vocabulary-sized head.
#pragma once

#include "kernels/tensor.h"

namespace outeffhop {

/// out[i] = x[index[i]], or 0 where index[i] is negative: the padding of a bucket.
struct GatherRows {
  std::int64_t count = 0, C = 0;
  const std::int32_t* index = nullptr;  ///< (count) row numbers of x, or negative; distinct where they are not
  ConstTensor x;                        ///< (rows, C)
  Tensor out;                           ///< (count, C)
};

/// The transpose of GatherRows: d_x[index[i]] = d_out[i] where index[i] is not negative; every other row of d_x is written
/// as 0.
struct ScatterRows {
  std::int64_t count = 0, rows = 0, C = 0;
  const std::int32_t* index = nullptr;  ///< (count) as in GatherRows
  ConstTensor d_out;                    ///< (count, C)
  Tensor d_x;                           ///< (rows, C), written
};

}  // namespace outeffhop
