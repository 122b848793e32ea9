// In place of the CUDA toolkit's cuda_runtime.h when kernels are compiled for the executor.
#pragma once

#include "tests/simt/builtins.h"
#include "tests/simt/runtime.h"
