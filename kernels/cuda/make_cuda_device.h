// What the rest of the program sees of the CUDA backend; needs no CUDA header.
#pragma once

#include <memory>

#include "kernels/device.h"

namespace outeffhop::cuda {

/// The first GPU that CUDA lists; `eager` as in DeviceOptions. Throws Error(unsupported) where there is none, or no driver.
std::unique_ptr<Device> make_cuda_device(bool eager);

}  // namespace outeffhop::cuda
