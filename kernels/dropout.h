// Dropout, as an argument of the ops that apply it and as an op of its own.
//
// Inverted dropout (Srivastava et al. 2014): out = keep ? x / (1 - p) : 0. An element is dropped when its 16 random bits
// (random.h) are below threshold = round(65536 p); the scale uses the probability that really results, so that the
// expectation is exact: scale = 65536 / (65536 - threshold).
#pragma once

#include <cmath>

#include "kernels/random.h"
#include "kernels/tensor.h"

namespace outeffhop {

/// One application of dropout. Row r of sample b uses the numbers of (sample_ids[b], r): the same for any batch size.
struct Dropout {
  std::uint32_t threshold = 0;  ///< 0: no dropout
  float scale = 1.0f;
  PhiloxKey key;                                ///< stream_key(seed, kStreamDropout + site)
  const std::uint64_t* sample_ids = nullptr;    ///< (B) device memory: global sample index of each batch row

  explicit operator bool() const { return threshold != 0; }

  static Dropout make(double probability, std::uint64_t seed, std::uint32_t site, const std::uint64_t* sample_ids) {
    Dropout d;
    d.threshold = static_cast<std::uint32_t>(std::lround(65536.0 * probability));
    d.scale = static_cast<float>(65536.0 / (65536.0 - d.threshold));
    d.key = stream_key(seed, kStreamDropout + site);
    d.sample_ids = sample_ids;
    return d;
  }
};

/// out = residual + dropout(x), elementwise over (B, T, C); the backward of dropout alone is the same op on the gradient.
/// Row t of sample b, channel c takes dropout_bits_linear(key, sample_ids[b], t, c).
struct DropoutAdd {
  std::int64_t B = 0, T = 0, C = 0;
  ConstTensor x;         ///< (B, T, C)
  ConstTensor residual;  ///< (B, T, C) or null for 0
  Tensor out;            ///< (B, T, C); may alias x or residual
  Dropout dropout;
};

}  // namespace outeffhop
