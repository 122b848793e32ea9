// CrossEntropy, fused with its gradient in place. One block a row.
//
// First sweep: each thread keeps the maximum of its logits so far and the sum of exponentials relative to it; the block
// combines them. Second sweep: the gradient. A row is read from memory once and written once, the floor: the block keeps
// what it read in shared memory (98 KiB for 50304 bf16 logits, so that two rows are under way on a multiprocessor of an
// H100; three of BERT's 30522). Reading it again through the L2 cache instead would need 132 x 2 rows or more to stay there,
// each of them twice where the cache is in two halves. Rows that do not fit are read again from wherever they are.
//
// Rows begin anywhere (30522 bf16 are no multiple of 16 bytes): what lies before a row's first and behind its last 16-byte
// boundary is its fringe, at most 14 columns, a thread each.
#include <cfloat>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx/exp2.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/words.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kGroup = 4;  // packs of 16 bytes that a thread loads before it looks at the first
constexpr int kScratchBytes = kReduceValues * static_cast<int>(sizeof(double));

/// exp(x - maximum); exactly 1 where they are equal, so that the loss of the only candidate is exactly 0.
__device__ __forceinline__ float exp_from(float maximum, float x) {
  constexpr float kLog2E = 1.44269504088896341f;
  return ptx::exp2_flushed((x - maximum) * kLog2E);
}

/// Sum of exponentials relative to the largest logit so far. It starts at a finite number: minus infinity is a logit that
/// may come first.
struct RunningSum {
  float maximum = -FLT_MAX, sum = 0.0f;

  __device__ __forceinline__ void raise(float to) {
    sum *= exp_from(to, maximum);
    maximum = to;
  }
};

template <class T>
__device__ __forceinline__ float largest_of(float value, const Words& words) {
#pragma unroll
  for (int i = 0; i < kInWords<T>; ++i) value = fmaxf(value, element_of<T>(words, i));  // NaN shows in the sum
  return value;
}

template <class T>
__device__ __forceinline__ float sum_of_exponentials(float maximum, const Words& words) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kInWords<T>; ++i) sum += exp_from(maximum, element_of<T>(words, i));
  return sum;
}

template <class T>
__global__ __launch_bounds__(kThreads) void cross_entropy_kernel(T* logits,                    // (rows, V)
                                                                 const std::int32_t* targets,  // (rows)
                                                                 float* losses,                // (rows) or null
                                                                 double* row_losses,           // (rows) or null
                                                                 std::int64_t row_stride, int V, bool write_gradient,
                                                                 float gradient_scale, bool keep_row) {
  constexpr int kSize = kInWords<T>;
  const auto r = std::int64_t{blockIdx.x};
  const int thread = static_cast<int>(threadIdx.x), target = targets[r];
  T* row = logits + r * row_stride;
  const auto elements_past_boundary = static_cast<int>(reinterpret_cast<std::uintptr_t>(row) % 16 / sizeof(T));
  const int head = min(V, (kSize - elements_past_boundary) % kSize), packs = (V - head) / kSize;
  const int fringe = V - packs * kSize;
  auto* body = reinterpret_cast<Words*>(row + head);
  T* my_fringe = row + (thread < head ? thread : thread + packs * kSize);  // for threads below `fringe`

  if (target < 0) {
    if (write_gradient) {
#pragma unroll 4
      for (int k = thread; k < packs; k += kThreads) body[k] = Words{};
      if (thread < fringe) *my_fringe = T(0.0f);
    }
    if (thread == 0 && losses) losses[r] = 0.0f;
    if (thread == 0 && row_losses) row_losses[r] = 0.0;
    return;
  }

  const auto kept = shared_array<Words>(kScratchBytes, keep_row ? packs : 0);
  const auto target_logit = static_cast<double>(static_cast<float>(row[target]));
  RunningSum running;
  for (int first = thread; first < packs; first += kGroup * kThreads) {
    Words group[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (const int k = first + j * kThreads; k < packs) group[j] = body[k];
    float largest = running.maximum;
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (const int k = first + j * kThreads; k < packs) {
        if (keep_row) kept[k] = group[j];
        largest = largest_of<T>(largest, group[j]);
      }
    running.raise(largest);
#pragma unroll
    for (int j = 0; j < kGroup; ++j)
      if (first + j * kThreads < packs) running.sum += sum_of_exponentials<T>(largest, group[j]);
  }
  if (thread < fringe) {
    const auto x = static_cast<float>(*my_fringe);
    running.raise(fmaxf(running.maximum, x));
    running.sum += exp_from(running.maximum, x);
  }

  const float maximum = block_reduce(running.maximum, shared_array<float>(0, kReduceValues), Max{});
  running.raise(maximum);
  const double sum = block_reduce(static_cast<double>(running.sum), shared_array<double>(0, kReduceValues), Sum{});
  const double target_difference = target_logit - static_cast<double>(maximum);
  if (thread == 0) {
    const double loss = log(sum) - target_difference;
    if (losses) losses[r] = static_cast<float>(loss);
    if (row_losses) row_losses[r] = loss;
  }
  if (!write_gradient) return;

  const auto factor = static_cast<float>(static_cast<double>(gradient_scale) / sum);
  for (int k = thread; k < packs; k += kThreads) {
    Words words;
    if (keep_row) {
      words = kept[k];
    } else {
      words = body[k];
    }
    float gradient[kSize];
#pragma unroll
    for (int i = 0; i < kSize; ++i) gradient[i] = exp_from(maximum, element_of<T>(words, i)) * factor;
    body[k] = words_of<T>(gradient);
  }
  if (thread < fringe) *my_fringe = static_cast<T>(exp_from(maximum, static_cast<float>(*my_fringe)) * factor);
  __syncthreads();
  // p - 1 in double: it cancels where the model is sure.
  if (thread == 0)
    row[target] =
        static_cast<T>(static_cast<float>(static_cast<double>(gradient_scale) * (exp(target_difference) / sum - 1.0)));
}

__global__ __launch_bounds__(kThreads) void add_losses_kernel(const double* row_losses,  // (rows)
                                                              double* loss_sum, std::int64_t rows) {
  const double sum = block_sum(row_losses, rows, shared_array<double>(0, kReduceValues));
  if (threadIdx.x == 0) *loss_sum += sum;
}

}  // namespace

void cross_entropy(const Context& context, const CrossEntropy& op) {
  require_same(DType::f32, op.losses, "cross-entropy", "losses");
  if (op.rows == 0) return;
  double* row_losses = op.loss_sum ? context.workspace.array<double>(static_cast<std::size_t>(op.rows)) : nullptr;
  const std::size_t row_bytes = static_cast<std::size_t>(op.V) * size_of(op.logits.dtype);
  const bool keep_row = op.write_gradient && kScratchBytes + row_bytes <= context.shared_bytes;
  with_storage(op.logits.dtype, "cross-entropy", [&](auto element) {
    using T = decltype(element);
    launch({.kernel = "cross_entropy",
            .grid = blocks_for(op.rows, 1),
            .block = kThreads,
            .shared_bytes = kScratchBytes + (keep_row ? row_bytes / 16 * 16 : 0),
            .stream = context.stream},
           cross_entropy_kernel<T>, static_cast<T*>(op.logits.data), op.targets, static_cast<float*>(op.losses.data),
           row_losses, op.row_stride, static_cast<int>(op.V), op.write_gradient, op.gradient_scale, keep_row);
  });
  if (op.loss_sum)
    launch({.kernel = "add_losses", .grid = 1, .block = kThreads, .shared_bytes = kScratchBytes, .stream = context.stream},
           add_losses_kernel, row_losses, op.loss_sum, op.rows);
}

}  // namespace outeffhop::cuda
