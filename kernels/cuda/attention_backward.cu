// AttentionBackward for any head size up to 256, fp32 and bf16, deterministic without atomics: D_i = do_i . o_i once for
// each query, then one warp a query sums d_q over the keys it sees, and one warp a key sums d_k and d_v over the queries
// that see it. Probabilities are computed anew in both from the scores and LSE.
#include "kernels/cuda/attention_resident.h"
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 128;

// One thread a query, and the order of additions that the scores have: where one key takes all of the probability, D_i and
// do_i . v_j are then equal, and the gradient of the query is 0 rather than what rounding leaves.
template <class T>
__global__ void attention_output_dot_kernel(AttentionProblem p,
                                            Heads<const T> o,    // (B, Tq, H, D)
                                            Heads<const T> d_o,  // (B, Tq, H, D)
                                            float* output_dot,   // (B, H, Tq): D_i
                                            bool aligned) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= p.B * p.H * p.Tq) return;
  const std::int64_t i = row % p.Tq, h = row / p.Tq % p.H, b = row / p.Tq / p.H;
  output_dot[row] = dot(d_o.at(b, i, h), o.at(b, i, h), p.D, aligned);
}

/// What a pair of a query and a key it sees contributes.
struct Pair {
  float d_score;  ///< ds_ij
  float weight;   ///< drop_ij p_ij
};

template <class T>
__device__ __forceinline__ Pair pair_of(const AttentionProblem& p, const T* query, const T* key, const T* value,
                                        const T* d_output, float lse, float output_dot, float drop, bool aligned) {
  const float probability = expf(p.scale * dot(query, key, p.D, aligned) - lse);
  return {probability * (drop * dot(d_output, value, p.D, aligned) - output_dot), drop * probability};
}

template <class T, int kChannels>
__global__ void attention_backward_queries_kernel(AttentionProblem p,
                                                  Heads<const T> q,         // (B, Tq, H, D)
                                                  Heads<const T> k,         // (B, Tk, H, D)
                                                  Heads<const T> v,         // (B, Tk, H, D)
                                                  Heads<const T> d_o,       // (B, Tq, H, D)
                                                  const float* lse,         // (B, H, Tq)
                                                  const float* output_dot,  // (B, H, Tq)
                                                  Heads<T> d_q,             // (B, Tq, H, D); of all samples where shared
                                                  std::int64_t samples, bool accumulate, bool aligned) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowsABlock + threadIdx.x / kWarp;
  if (row >= p.B / samples * p.H * p.Tq) return;
  const std::int64_t i = row % p.Tq, h = row / p.Tq % p.H, sample = row / p.Tq / p.H * samples;
  Channels<kChannels> gradient;
  const Weights weights(0);
  for (std::int64_t b = sample; b < sample + samples; ++b) {
    const KeyRange keys = visible_keys(p, b, i);
    const std::int64_t statistic = (b * p.H + h) * p.Tq + i;
    for (std::int64_t first = keys.begin; first < keys.end; first += kWarp) {
      const std::int64_t j = first + lane;
      float d_score = 0.0f;
      if (j < keys.end)
        d_score = pair_of(p, q.at(b, i, h), k.at(b, j, h), v.at(b, j, h), d_o.at(b, i, h), lse[statistic],
                          output_dot[statistic], dropout_factor(p, b, h, i, j), aligned)
                      .d_score;
      weights.put(d_score);
      __syncwarp();
      weights.add_rows(gradient, static_cast<int>(min(std::int64_t{kWarp}, keys.end - first)), p.D,
                       [&](int t) { return k.at(b, first + t, h); });
      __syncwarp();
    }
  }
  gradient.scale(p.scale);
  gradient.store(d_q.at(sample, i, h), p.D, accumulate);
}

template <class T, int kChannels>
__global__ void attention_backward_keys_kernel(AttentionProblem p,
                                               Heads<const T> q,         // (B, Tq, H, D)
                                               Heads<const T> k,         // (B, Tk, H, D)
                                               Heads<const T> v,         // (B, Tk, H, D)
                                               Heads<const T> d_o,       // (B, Tq, H, D)
                                               const float* lse,         // (B, H, Tq)
                                               const float* output_dot,  // (B, H, Tq)
                                               Heads<T> d_k,             // (B, Tk, H, D), or null
                                               Heads<T> d_v,             // (B, Tk, H, D), or null
                                               std::int64_t samples, bool accumulate_d_k, bool accumulate_d_v,
                                               bool aligned) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowsABlock + threadIdx.x / kWarp;
  if (row >= p.B / samples * p.H * p.Tk) return;
  const std::int64_t j = row % p.Tk, h = row / p.Tk % p.H, sample = row / p.Tk / p.H * samples;
  Channels<kChannels> key_gradient, value_gradient;
  const Weights d_scores(0), weights(1);
  for (std::int64_t b = sample; b < sample + samples; ++b) {
    const std::int64_t begin = p.causal ? max(std::int64_t{0}, j - p.causal_offset) : 0;
    for (std::int64_t first = begin; first < p.Tq; first += kWarp) {
      const std::int64_t i = first + lane;
      Pair pair{0.0f, 0.0f};
      bool sees = i < p.Tq;
      if (sees) {
        const KeyRange keys = visible_keys(p, b, i);
        sees = keys.begin <= j && j < keys.end;
      }
      if (!__any_sync(kFullMask, sees)) continue;
      if (sees) {
        const std::int64_t statistic = (b * p.H + h) * p.Tq + i;
        pair = pair_of(p, q.at(b, i, h), k.at(b, j, h), v.at(b, j, h), d_o.at(b, i, h), lse[statistic],
                       output_dot[statistic], dropout_factor(p, b, h, i, j), aligned);
      }
      d_scores.put(pair.d_score);
      weights.put(pair.weight);
      __syncwarp();
      const int count = static_cast<int>(min(std::int64_t{kWarp}, p.Tq - first));
      d_scores.add_rows(key_gradient, count, p.D, [&](int t) { return q.at(b, first + t, h); });
      weights.add_rows(value_gradient, count, p.D, [&](int t) { return d_o.at(b, first + t, h); });
      __syncwarp();
    }
  }
  key_gradient.scale(p.scale);
  if (d_k.data) key_gradient.store(d_k.at(sample, j, h), p.D, accumulate_d_k);
  if (d_v.data) value_gradient.store(d_v.at(sample, j, h), p.D, accumulate_d_v);
}

}  // namespace

void attention_backward(const Context& context, const AttentionBackward& op) {
  constexpr const char* kName = "attention backward";
  const AttentionProblem& p = op.problem;
  check_heads(p, kName);
  for (const auto& [view, name] : {std::pair{ConstHeadView(op.k), "k"},
                                   {op.v, "v"},
                                   {op.o, "o"},
                                   {op.d_o, "d_o"},
                                   {op.d_q, "d_q"},
                                   {op.d_k, "d_k"},
                                   {op.d_v, "d_v"}})
    check_same(op.q, view, kName, name);
  check_lse(op.lse, true, kName);
  if (attention_backward_resident(context, op) || attention_backward_tensor(context, op)) return;
  const std::int64_t queries = p.B * p.H * p.Tq, keys = p.B * p.H * p.Tk;
  auto* output_dot = context.workspace.array<float>(static_cast<std::size_t>(queries));
  const auto* lse = static_cast<const float*>(op.lse.data);
  const bool aligned = vectors_aligned(op.q) && vectors_aligned(op.k) && vectors_aligned(op.v) && vectors_aligned(op.d_o) &&
                       vectors_aligned(op.o);
  // A gradient that the whole batch shares is summed over it by one warp a row.
  const auto samples_of = [&](const HeadView& gradient) { return gradient.batch_stride == 0 ? p.B : std::int64_t{1}; };
  const auto shape = [&](const char* kernel, std::int64_t rows) {
    return LaunchShape{.kernel = kernel,
                       .grid = blocks_for(rows, kRowsABlock),
                       .block = kRowsABlock * kWarp,
                       .shared_bytes = 2 * Weights::kSharedBytes,
                       .stream = context.stream};
  };
  with_storage(op.q.dtype, kName, [&](auto element) {
    using T = decltype(element);
    if (queries > 0)
      launch({.kernel = "attention_output_dot",
              .grid = blocks_for(queries, kThreads),
              .block = kThreads,
              .stream = context.stream},
             attention_output_dot_kernel<T>, p, heads<T>(op.o), heads<T>(op.d_o), output_dot, aligned);
    with_channels(p.D, [&](auto channels) {
      if (op.d_q && queries > 0) {
        const std::int64_t samples = samples_of(op.d_q);
        launch(shape("attention_backward_queries", queries / samples), attention_backward_queries_kernel<T, channels()>, p,
               heads<T>(op.q), heads<T>(op.k), heads<T>(op.v), heads<T>(op.d_o), lse, output_dot, heads<T>(op.d_q), samples,
               op.accumulate_d_q, aligned);
      }
      const auto backward_keys = [&](const HeadView& d_k, const HeadView& d_v, std::int64_t samples) {
        launch(shape("attention_backward_keys", keys / samples), attention_backward_keys_kernel<T, channels()>, p,
               heads<T>(op.q), heads<T>(op.k), heads<T>(op.v), heads<T>(op.d_o), lse, output_dot, heads<T>(d_k),
               heads<T>(d_v), samples, op.accumulate_d_k, op.accumulate_d_v, aligned);
      };
      if (keys == 0) return;
      if (op.d_k && op.d_v && samples_of(op.d_k) != samples_of(op.d_v)) {
        backward_keys(op.d_k, {}, samples_of(op.d_k));
        backward_keys({}, op.d_v, samples_of(op.d_v));
      } else if (op.d_k || op.d_v) {
        backward_keys(op.d_k, op.d_v, samples_of(op.d_k ? op.d_k : op.d_v));
      }
    });
  });
}

}  // namespace outeffhop::cuda
