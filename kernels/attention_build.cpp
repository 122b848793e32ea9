#include <cmath>

#include "kernels/attention.h"
#include "kernels/error.h"

namespace outeffhop {

AttentionBuild attention_build() {
#if defined(OUTEFFHOP_VANILLA_SOFTMAX)
  return {true, "vanilla"};
#else
  return {false, "softmax1"};
#endif
}

void check_attention(const AttentionProblem& p, const char* op) {
  require(p.B >= 0 && p.H >= 0 && p.Tq >= 0 && p.Tk >= 0 && p.D >= 1, "{}: impossible sizes B {}, H {}, Tq {}, Tk {}, D {}",
          op, p.B, p.H, p.Tq, p.Tk, p.D);
  require(!p.dropout || p.dropout.sample_ids, "{}: dropout without sample ids", op);
  if (!(p.n >= 0.0f) || std::isinf(p.n))
    fail(ErrorKind::unsupported, "{}: the softmax constant n must be a finite number of at least 0, got {}", op, p.n);
  if (attention_build().vanilla_only && p.n != 0.0f)
    fail(ErrorKind::unsupported,
         "{}: this program was built with OUTEFFHOP_VANILLA_SOFTMAX=ON and computes the ordinary softmax (n = 0) alone, but "
         "n = {} was asked for; build with -DOUTEFFHOP_VANILLA_SOFTMAX=OFF, or choose the softmax \"vanilla\"",
         op, p.n);
}

}  // namespace outeffhop
