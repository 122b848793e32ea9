// What attention on CUDA refuses. (In a .cpp file, as .cu files have no fmt.)
#include "kernels/cuda/attention_checks.h"

#include "kernels/attention.h"
#include "kernels/error.h"

namespace outeffhop::cuda {

void check_heads(const AttentionProblem& problem, const char* op) {
  check_attention(problem, op);
  if (problem.D > kMaxHeadSize)
    fail(ErrorKind::unsupported, "{} on CUDA takes heads of up to {} channels, not {}; use more heads, or --device cpu", op,
         kMaxHeadSize, problem.D);
}

void check_same(const ConstHeadView& expected, const ConstHeadView& view, const char* op, const char* name) {
  if (view.data && view.dtype != expected.dtype)
    fail(ErrorKind::unsupported, "{} on CUDA needs {} in {}, as q, but it is {}", op, name, name_of(expected.dtype),
         name_of(view.dtype));
}

void check_lse(const ConstTensor& lse, bool needed, const char* op) {
  require(lse || !needed, "{}: needs the forward's lse", op);
  require(!lse || lse.dtype == DType::f32, "{}: lse is {}, expected fp32", op, name_of(lse.dtype));
}

void check_rows(const AttentionProblem& problem, std::int64_t begin, std::int64_t rows, const char* op) {
  require(begin >= 0 && rows >= 0 && begin + rows <= problem.Tq, "{}: rows [{}, {}) of {} queries", op, begin, begin + rows,
          problem.Tq);
}

}  // namespace outeffhop::cuda
