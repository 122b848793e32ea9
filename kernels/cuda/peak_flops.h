// What a GPU's matrix products could reach at most.
#pragma once

#include <string_view>

#include "kernels/tensor.h"

namespace outeffhop::cuda {

/// What the driver says of a GPU.
struct Chip {
  std::string_view name;     ///< "NVIDIA H100 80GB HBM3"
  int major = 0, minor = 0;  ///< compute capability
  int multiprocessors = 0;
  double clock = 0.0;  ///< the highest, in Hz
};

/// Multiplications and additions a second of dense products of `storage`: bf16 on tensor cores with sums in fp32, fp32 in
/// ordinary instructions (this backend uses no TF32). 0: the chip's rate is not known here.
///
/// At the highest clock of the chip, which a data sheet may not count with: of an H100 SXM that is 1.98 GHz and gives
/// 1,071 TFLOP/s, where NVIDIA states 989 for the 1.83 GHz that it holds under tensor-core load.
double peak_flops(const Chip& chip, DType storage);

}  // namespace outeffhop::cuda
