// What the rest of the program sees of the CUDA backend; needs no CUDA header.
#pragma once

#include <memory>
#include <string>

#include "kernels/device.h"

namespace outeffhop::cuda {

/// Why this machine has no GPU for make_cuda_device(), in a few words; "" where it has one.
std::string obstacle();

/// The first GPU that CUDA lists; `eager` as in DeviceOptions. Throws Error(unsupported) where there is none, or no driver.
std::unique_ptr<Device> make_cuda_device(bool eager);

}  // namespace outeffhop::cuda
