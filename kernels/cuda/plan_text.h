// Chosen algorithms as text: what a checkpoint keeps, so that a run that goes on has the same bits.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/cuda/product_plans.h"

namespace outeffhop::cuda {

using Algorithms = std::map<ProductKey, cublasLtMatmulAlgo_t>;

/// JSON of the algorithms, and of what they are good for: the kind of the current device, and the libraries' versions.
std::string write_algorithms(const Algorithms& algorithms);

/// None where the text is of another kind of device, of other versions of the libraries, or no such text.
std::optional<Algorithms> read_algorithms(std::string_view text);
}  // namespace outeffhop::cuda
