// Reductions for outlier metrics and telemetry, and casts between dtypes.
#pragma once

#include "kernels/tensor.h"

namespace outeffhop {

/// What one row of values says about outliers. Central moments are computed about the row's own mean, in double.
struct Moments {
  double max_abs = 0.0;
  double mean = 0.0;
  double square_sum = 0.0;  ///< sum of (x - mean)^2
  double fourth_sum = 0.0;  ///< sum of (x - mean)^4
};

/// moments[r] of each row. A NaN or infinity in a row makes max_abs NaN or infinite, never hides it.
struct RowMoments {
  std::int64_t rows = 0, C = 0;
  ConstTensor x;              ///< (rows, C)
  Moments* moments = nullptr; ///< (rows) device memory, written
};

/// to[i] = from[i] rounded to the nearest value of to's dtype.
struct Cast {
  std::int64_t count = 0;
  ConstTensor from;
  Tensor to;
};

}  // namespace outeffhop
