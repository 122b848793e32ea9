// Attention on the CPU: checks, threads and scratch. The arithmetic is in kernels/cpu/simd/attention*.cpp.
#include "kernels/attention.h"

#include <omp.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd/attention.h"
#include "kernels/error.h"

namespace outeffhop::cpu {

namespace {

AttentionKernels kernels_of_this_processor() {
#define OUTEFFHOP_ATTENTION_TABLE(level)                                                           \
  {                                                                                                \
    level::attention_forward_scratch, level::attention_forward, level::attention_backward_scratch, \
        level::attention_backward, level::attention_observed_scratch, level::attention_scores,     \
        level::attention_probabilities, level::attention_context                                   \
  }
  switch (detected_isa()) {
#if defined(OUTEFFHOP_HAS_ISA_AVX512)
    case Isa::avx512:
      return OUTEFFHOP_ATTENTION_TABLE(isa_avx512);
#endif
#if defined(OUTEFFHOP_HAS_ISA_AVX2)
    case Isa::avx2:
      return OUTEFFHOP_ATTENTION_TABLE(isa_avx2);
#endif
    default:
      return OUTEFFHOP_ATTENTION_TABLE(isa_baseline);
  }
#undef OUTEFFHOP_ATTENTION_TABLE
}

/// Scratch of one thread: grows, never shrinks, so that steps after the first allocate nothing.
class ThreadScratch {
 public:
  ThreadScratch() = default;
  ThreadScratch(const ThreadScratch&) = delete;
  ThreadScratch& operator=(const ThreadScratch&) = delete;
  ~ThreadScratch() { std::free(data_); }

  /// At least `floats` floats, 64-byte aligned; null when there is no memory.
  float* at_least(std::int64_t floats) {
    if (floats > floats_) {
      std::free(data_);
      const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) + 63) / 64 * 64;
      data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
      floats_ = data_ ? floats : 0;
    }
    return data_;
  }

 private:
  float* data_ = nullptr;
  std::int64_t floats_ = 0;
};

/// Runs kernel(op, part, parts, scratch) on a team of `threads`.
template <class Op>
void run_parts(int threads, void (*kernel)(const Op&, int, int, float*), const Op& op, std::int64_t scratch_floats,
               const char* name) {
  std::atomic<bool> out_of_memory = false;
#pragma omp parallel num_threads(threads)
  {
    thread_local ThreadScratch scratch;
    // Every part must run whatever the size of the team that OpenMP granted.
    if (float* base = scratch.at_least(scratch_floats > 0 ? scratch_floats : 1)) {
      kernel(op, omp_get_thread_num(), omp_get_num_threads(), base);
    } else {
      out_of_memory = true;
    }
  }
  if (out_of_memory) {
    fail(ErrorKind::unsupported,
         "{} of {} queries, {} keys and head size {} needs {:.1f} MiB of scratch memory a thread, which the system did not "
         "grant; "
         "use a shorter sequence or fewer threads",
         name, op.problem.Tq, op.problem.Tk, op.problem.D, static_cast<double>(scratch_floats) * 4.0 / (1 << 20));
  }
}

/// The CPU computes on fp32 and bf16 storage.
template <class View>
void check_storage(const View& view, const char* name, const char* operand) {
  require(view.dtype == DType::f32 || view.dtype == DType::bf16, "{}: {} is {}; the CPU stores fp32 or bf16", name, operand,
          name_of(view.dtype));
}

void check_rows(const AttentionProblem& p, std::int64_t begin, std::int64_t rows, const char* name) {
  require(begin >= 0 && rows >= 0 && begin + rows <= p.Tq, "{}: rows [{}, {}) of {} queries", name, begin, begin + rows,
          p.Tq);
}

}  // namespace

void attention_forward(int threads, const AttentionForward& op) {
  constexpr const char* name = "attention";
  check_attention(op.problem, name);
  check_storage(op.q, name, "q");
  check_storage(op.k, name, "k");
  check_storage(op.v, name, "v");
  check_storage(op.o, name, "o");
  require(!op.lse || op.lse.dtype == DType::f32, "{}: lse is {}, expected fp32", name, name_of(op.lse.dtype));
  const AttentionKernels kernels = kernels_of_this_processor();
  run_parts(threads, kernels.forward, op, kernels.forward_scratch(op.problem), name);
}

void attention_backward(int threads, const AttentionBackward& op) {
  constexpr const char* name = "attention backward";
  check_attention(op.problem, name);
  check_storage(op.q, name, "q");
  check_storage(op.k, name, "k");
  check_storage(op.v, name, "v");
  check_storage(op.o, name, "o");
  check_storage(op.d_o, name, "d_o");
  check_storage(op.d_q, name, "d_q");
  check_storage(op.d_k, name, "d_k");
  check_storage(op.d_v, name, "d_v");
  require(op.lse && op.lse.dtype == DType::f32, "{}: needs the forward's lse in fp32", name);
  const AttentionKernels kernels = kernels_of_this_processor();
  run_parts(threads, kernels.backward, op, kernels.backward_scratch(op.problem), name);
}

void attention_scores(int threads, const AttentionScores& op) {
  constexpr const char* name = "attention scores";
  check_attention(op.problem, name);
  check_rows(op.problem, op.row_begin, op.rows, name);
  check_storage(op.q, name, "q");
  check_storage(op.k, name, "k");
  check_storage(op.scores, name, "scores");
  const AttentionKernels kernels = kernels_of_this_processor();
  run_parts(threads, kernels.scores, op, kernels.observed_scratch(op.problem), name);
}

void attention_probabilities(int threads, const AttentionProbabilities& op) {
  constexpr const char* name = "attention probabilities";
  check_attention(op.problem, name);
  check_rows(op.problem, op.row_begin, op.rows, name);
  check_storage(op.scores, name, "scores");
  check_storage(op.probabilities, name, "probabilities");
  const AttentionKernels kernels = kernels_of_this_processor();
  run_parts(threads, kernels.probabilities, op, kernels.observed_scratch(op.problem), name);
}

void attention_context(int threads, const AttentionContext& op) {
  constexpr const char* name = "attention context";
  check_attention(op.problem, name);
  check_rows(op.problem, op.row_begin, op.rows, name);
  check_storage(op.probabilities, name, "probabilities");
  check_storage(op.v, name, "v");
  check_storage(op.o, name, "o");
  const AttentionKernels kernels = kernels_of_this_processor();
  run_parts(threads, kernels.context, op, kernels.observed_scratch(op.problem), name);
}

}  // namespace outeffhop::cpu
