// What attention on CUDA refuses, in the words of `op` ("attention backward").
#pragma once

#include "kernels/attention.h"

namespace outeffhop::cuda {

constexpr int kMaxHeadSize = 256;

/// Throws Error(unsupported) for a head size or softmax constant that the kernels do not have.
void check_heads(const AttentionProblem& problem, const char* op);
/// Throws Error(unsupported) unless `view` is absent or has the element type of `expected`, which is q.
void check_same(const ConstHeadView& expected, const ConstHeadView& view, const char* op, const char* name);
/// Throws Error(internal) where lse is needed and absent, or not fp32.
void check_lse(const ConstTensor& lse, bool needed, const char* op);
/// Throws Error(internal) unless [begin, begin + rows) are queries.
void check_rows(const AttentionProblem& problem, std::int64_t begin, std::int64_t rows, const char* op);

}  // namespace outeffhop::cuda
