#include "kernels/attention.h"

namespace outeffhop {

AttentionBuild attention_build() {
#if defined(OUTEFFHOP_VANILLA_SOFTMAX)
  return {true, "vanilla"};
#else
  return {false, "softmax1"};
#endif
}

}  // namespace outeffhop
