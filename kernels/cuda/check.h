// Every call of the CUDA runtime goes through OUTEFFHOP_CUDA: what fails becomes an Error with the call's own text.
#pragma once

#include <cuda_runtime.h>

#include "kernels/error.h"

namespace outeffhop::cuda {

/// Throws Error(unsupported) where there is no device, driver or memory, Error(internal) for anything else that failed.
void check(cudaError_t status, const char* call);

}  // namespace outeffhop::cuda

#define OUTEFFHOP_CUDA(call) ::outeffhop::cuda::check((call), #call)
