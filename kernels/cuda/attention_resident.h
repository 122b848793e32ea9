// AttentionBackward of short sequences: one kernel, in which a block has a whole head.
#pragma once

#include "kernels/attention.h"
#include "kernels/cuda/context.h"

namespace outeffhop::cuda {

/// Runs an op that has been checked and returns true; or returns false, and does nothing, where the kernel does not serve:
/// another storage dtype than bf16, heads of other than 64 channels, more than 512 queries or keys or none, no head, more
/// than 65,535 samples, vectors that do not begin at multiples of 16 bytes or whose rows are more than 2^21 elements apart,
/// key ranges that do not begin at multiples of 8 bytes, gradients that are accumulated into or shared by the batch, and
/// devices without the shared memory. A gradient may be absent; the others are the same then.
bool attention_backward_resident(const Context& context, const AttentionBackward& op);

}  // namespace outeffhop::cuda
