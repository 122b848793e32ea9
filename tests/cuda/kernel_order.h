// What tests of the CUDA backend may ask of whoever runs its kernels.
#pragma once

namespace outeffhop::test {

/// From here on warps and lanes have their turns in another order: one for each number, 0 the usual one. A GPU orders them
/// as it likes, and is not asked.
void set_kernel_order(unsigned number);

}  // namespace outeffhop::test
