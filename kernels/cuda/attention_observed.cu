// AttentionScores, AttentionProbabilities and AttentionContext: the stages of attention in memory, for evaluation. Plain
// kernels; nothing here is on the way of training.
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, class Score>
__global__ void attention_scores_kernel(AttentionProblem p, std::int64_t row_begin, std::int64_t rows,
                                        Heads<const T> q,  // (B, Tq, H, D)
                                        Heads<const T> k,  // (B, Tk, H, D)
                                        Score* scores,     // (B, H, rows, Tk)
                                        bool aligned) {
  const std::int64_t number = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (number >= p.B * p.H * rows * p.Tk) return;
  const std::int64_t j = number % p.Tk, r = number / p.Tk % rows, h = number / p.Tk / rows % p.H,
                     b = number / p.Tk / rows / p.H;
  scores[number] = static_cast<Score>(p.scale * dot(q.at(b, row_begin + r, h), k.at(b, j, h), p.D, aligned));
}

// One warp a row; each lane reads and writes its own elements, so that probabilities may be scores.
template <class Score, class Probability>
__global__ void attention_probabilities_kernel(AttentionProblem p, std::int64_t row_begin, std::int64_t rows,
                                               const Score* scores,           // (B, H, rows, Tk)
                                               Probability* probabilities) {  // (B, H, rows, Tk)
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowsABlock + threadIdx.x / kWarp;
  if (row >= p.B * p.H * rows) return;
  const KeyRange keys = visible_keys(p, row / rows / p.H, row_begin + row % rows);
  const Score* in = scores + row * p.Tk;
  Probability* out = probabilities + row * p.Tk;
  const float n = softmax_constant(p);
  float maximum = n > 0.0f ? logf(n) : -INFINITY, sum = 0.0f;
  for (std::int64_t j = keys.begin + lane; j < keys.end; j += kWarp) maximum = max(maximum, static_cast<float>(in[j]));
  maximum = warp_reduce(maximum, Max{});
  for (std::int64_t j = keys.begin + lane; j < keys.end; j += kWarp) sum += expf(static_cast<float>(in[j]) - maximum);
  sum = warp_reduce(sum, Sum{});
  if (n > 0.0f) sum += expf(logf(n) - maximum);
  for (std::int64_t j = lane; j < p.Tk; j += kWarp) {
    const bool visible = keys.begin <= j && j < keys.end;
    out[j] = static_cast<Probability>(visible ? expf(static_cast<float>(in[j]) - maximum) / sum : 0.0f);
  }
}

template <class Probability, class T>
__global__ void attention_context_kernel(AttentionProblem p, std::int64_t row_begin, std::int64_t rows,
                                         const Probability* probabilities,  // (B, H, rows, Tk)
                                         Heads<const T> v,                  // (B, Tk, H, D)
                                         Heads<T> o) {                      // (B, Tq, H, D)
  const std::int64_t number = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (number >= p.B * p.H * rows * p.D) return;
  const std::int64_t d = number % p.D, row = number / p.D, r = row % rows, h = row / rows % p.H, b = row / rows / p.H;
  float sum = 0.0f;
  for (std::int64_t j = 0; j < p.Tk; ++j)
    sum += static_cast<float>(probabilities[row * p.Tk + j]) * static_cast<float>(v.at(b, j, h)[d]);
  o.at(b, row_begin + r, h)[d] = static_cast<T>(sum);
}

LaunchShape threads_for(const char* kernel, std::int64_t count, const Context& context) {
  return {.kernel = kernel, .grid = blocks_for(count, kThreads), .block = kThreads, .stream = context.stream};
}

}  // namespace

void attention_scores(const Context& context, const AttentionScores& op) {
  constexpr const char* kName = "attention scores";
  const AttentionProblem& p = op.problem;
  check_heads(p, kName);
  check_rows(p, op.row_begin, op.rows, kName);
  check_same(op.q, op.k, kName, "k");
  const std::int64_t count = p.B * p.H * op.rows * p.Tk;
  if (count == 0) return;
  const bool aligned = vectors_aligned(op.q) && vectors_aligned(op.k);
  with_storage(op.q.dtype, kName, [&](auto element) {
    with_storage(op.scores.dtype, kName, [&](auto score) {
      using T = decltype(element);
      using Score = decltype(score);
      launch(threads_for("attention_scores", count, context), attention_scores_kernel<T, Score>, p, op.row_begin, op.rows,
             heads<T>(op.q), heads<T>(op.k), static_cast<Score*>(op.scores.data), aligned);
    });
  });
}

void attention_probabilities(const Context& context, const AttentionProbabilities& op) {
  constexpr const char* kName = "attention probabilities";
  const AttentionProblem& p = op.problem;
  check_heads(p, kName);
  check_rows(p, op.row_begin, op.rows, kName);
  const std::int64_t rows = p.B * p.H * op.rows;
  if (rows * p.Tk == 0) return;
  with_storage(op.scores.dtype, kName, [&](auto score) {
    with_storage(op.probabilities.dtype, kName, [&](auto probability) {
      using Score = decltype(score);
      using Probability = decltype(probability);
      launch({.kernel = "attention_probabilities",
              .grid = blocks_for(rows, kRowsABlock),
              .block = kRowsABlock * kWarp,
              .stream = context.stream},
             attention_probabilities_kernel<Score, Probability>, p, op.row_begin, op.rows,
             static_cast<const Score*>(op.scores.data), static_cast<Probability*>(op.probabilities.data));
    });
  });
}

void attention_context(const Context& context, const AttentionContext& op) {
  constexpr const char* kName = "attention context";
  const AttentionProblem& p = op.problem;
  check_heads(p, kName);
  check_rows(p, op.row_begin, op.rows, kName);
  check_same(op.v, op.o, kName, "o");
  const std::int64_t count = p.B * p.H * op.rows * p.D;
  if (count == 0) return;
  with_storage(op.v.dtype, kName, [&](auto element) {
    with_storage(op.probabilities.dtype, kName, [&](auto probability) {
      using T = decltype(element);
      using Probability = decltype(probability);
      launch(threads_for("attention_context", count, context), attention_context_kernel<Probability, T>, p, op.row_begin,
             op.rows, static_cast<const Probability*>(op.probabilities.data), heads<T>(op.v), heads<T>(op.o));
    });
  });
}

}  // namespace outeffhop::cuda
