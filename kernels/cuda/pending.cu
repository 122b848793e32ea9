// Scaffolding while the ops land: each op's line goes when its file comes. Must not reach main.
#include "kernels/cuda/cuda_device.h"

namespace outeffhop::cuda {
#define PENDING(name, Op) \
  void name(const Context&, const Op&) { throw Error(ErrorKind::unsupported, #name " is pending"); }
PENDING(layernorm_backward, LayerNormBackward)
}  // namespace outeffhop::cuda
