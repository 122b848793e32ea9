// Attention's forward on tensor cores.
#pragma once

#include "kernels/attention.h"
#include "kernels/cuda/context.h"

namespace outeffhop::cuda {

/// Runs `op`, which is not empty and has been checked, and returns true; or false, and does nothing, where these kernels do
/// not serve: other storage than bf16, head sizes other than 32, 64, 80, 96 and 128, vectors that are not aligned to 16
/// bytes.
bool attention_forward_tensor(const Context& context, const AttentionForward& op);

}  // namespace outeffhop::cuda
