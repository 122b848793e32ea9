// AttentionForward for any head size up to 256, fp32 and bf16. One warp a query: 32 keys at a time, the online softmax over
// them (Milakov, Gimelshein 2018), started at running maximum log n and running sum 1. No barrier of the block, so
// that ragged lengths, packed documents and fully masked rows cost nothing extra: a warp visits the keys its query sees.
#include "kernels/cuda/attention_rows.cuh"
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {
namespace {

template <class T, int kChannels>
__global__ void attention_forward_kernel(AttentionProblem p,
                                         Heads<const T> q,  // (B, Tq, H, D)
                                         Heads<const T> k,  // (B, Tk, H, D)
                                         Heads<const T> v,  // (B, Tk, H, D)
                                         Heads<T> o,        // (B, Tq, H, D)
                                         float* lse,        // (B, H, Tq) or null
                                         bool aligned) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowsABlock + threadIdx.x / kWarp;
  if (row >= p.B * p.H * p.Tq) return;
  const std::int64_t i = row % p.Tq, h = row / p.Tq % p.H, b = row / p.Tq / p.H;
  const T* query = q.at(b, i, h);
  const KeyRange keys = visible_keys(p, b, i);

  const float n = softmax_constant(p);
  float maximum = n > 0.0f ? logf(n) : -INFINITY, sum = n > 0.0f ? 1.0f : 0.0f;
  Channels<kChannels> output;
  const Weights weights(0);
  for (std::int64_t first = keys.begin; first < keys.end; first += kWarp) {
    const std::int64_t j = first + lane;
    const bool visible = j < keys.end;
    const float score = visible ? p.scale * dot(query, k.at(b, j, h), p.D, aligned) : -INFINITY;
    const float larger = max(maximum, warp_reduce(score, Max{}));
    const float correction = expf(maximum - larger), exponential = visible ? expf(score - larger) : 0.0f;
    sum = sum * correction + warp_reduce(exponential, Sum{});
    maximum = larger;
    output.scale(correction);
    const float weight = visible ? exponential * dropout_factor(p, b, h, i, j) : 0.0f;
    weights.put(weight);
    __syncwarp();
    weights.add_rows(output, static_cast<int>(min(std::int64_t{kWarp}, keys.end - first)), p.D,
                     [&](int t) { return v.at(b, first + t, h); });
    __syncwarp();
  }
  const bool empty = sum == 0.0f;  // the ordinary softmax of no key
  output.scale(empty ? 0.0f : 1.0f / sum);
  output.store(o.at(b, i, h), p.D, false);
  if (lse && lane == 0) lse[row] = empty ? 0.0f : maximum + logf(sum);
}

}  // namespace

void attention_forward(const Context& context, const AttentionForward& op) {
  constexpr const char* kName = "attention";
  const AttentionProblem& p = op.problem;
  check_heads(p, kName);
  check_same(op.q, op.k, kName, "k");
  check_same(op.q, op.v, kName, "v");
  check_same(op.q, op.o, kName, "o");
  check_lse(op.lse, false, kName);
  const std::int64_t rows = p.B * p.H * p.Tq;
  if (rows == 0) return;
  if (attention_forward_tensor(context, op)) return;
  const bool aligned = vectors_aligned(op.q) && vectors_aligned(op.k);
  with_storage(op.q.dtype, kName, [&](auto element) {
    using T = decltype(element);
    with_channels(p.D, [&](auto channels) {
      launch({.kernel = "attention_forward",
              .grid = blocks_for(rows, kRowsABlock),
              .block = kRowsABlock * kWarp,
              .shared_bytes = Weights::kSharedBytes,
              .stream = context.stream},
             attention_forward_kernel<T, channels()>, p, heads<T>(op.q), heads<T>(op.k), heads<T>(op.v), heads<T>(op.o),
             static_cast<float*>(op.lse.data), aligned);
    });
  });
}

}  // namespace outeffhop::cuda
