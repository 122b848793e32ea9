// The attention kernels of each instruction-set level. kernels/cpu/attention.cpp checks the problem, owns the threads and
// their scratch, and calls one of these tables; the sources beside this header fill them.
#pragma once

#include <cstdint>

#include "kernels/attention.h"

namespace outeffhop::cpu {

/// One part of `parts` of the work of an op, for one thread. A part is a pure function of (op, part, parts), and an output
/// element is summed in an order that depends on neither: the same bits for any number of threads.
/// `scratch` holds at least what the *_scratch function says, in floats, 64-byte aligned; its contents need not be set.
struct AttentionKernels {
  std::int64_t (*forward_scratch)(const AttentionProblem&);
  void (*forward)(const AttentionForward&, int part, int parts, float* scratch);

  std::int64_t (*backward_scratch)(const AttentionProblem&);
  void (*backward)(const AttentionBackward&, int part, int parts, float* scratch);

  std::int64_t (*observed_scratch)(const AttentionProblem&);
  void (*scores)(const AttentionScores&, int part, int parts, float* scratch);
  void (*probabilities)(const AttentionProbabilities&, int part, int parts, float* scratch);
  void (*context)(const AttentionContext&, int part, int parts, float* scratch);
};

#define OUTEFFHOP_ATTENTION_LEVEL(level)                                                    \
  namespace level {                                                                         \
  std::int64_t attention_forward_scratch(const AttentionProblem&);                          \
  void attention_forward(const AttentionForward&, int part, int parts, float* scratch);     \
  std::int64_t attention_backward_scratch(const AttentionProblem&);                         \
  void attention_backward(const AttentionBackward&, int part, int parts, float* scratch);   \
  std::int64_t attention_observed_scratch(const AttentionProblem&);                         \
  void attention_scores(const AttentionScores&, int part, int parts, float* scratch);       \
  void attention_probabilities(const AttentionProbabilities&, int part, int parts, float*); \
  void attention_context(const AttentionContext&, int part, int parts, float* scratch);     \
  }

OUTEFFHOP_ATTENTION_LEVEL(isa_baseline)
#if defined(OUTEFFHOP_HAS_ISA_AVX2)
OUTEFFHOP_ATTENTION_LEVEL(isa_avx2)
#endif
#if defined(OUTEFFHOP_HAS_ISA_AVX512)
OUTEFFHOP_ATTENTION_LEVEL(isa_avx512)
#endif

#undef OUTEFFHOP_ATTENTION_LEVEL

}  // namespace outeffhop::cpu
