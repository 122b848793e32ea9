// What the general attention kernels share: strided heads, the keys a query sees, dot products.
//
// A warp has one row (a query, or a key in the backward of keys and values). Scores: a lane has one of 32 neighbouring
// partners. Sums over partners: a lane has every 32nd channel, and reads the 32 lanes' weights from shared memory.
#pragma once

#include <type_traits>

#include "kernels/attention.h"
#include "kernels/cuda/attention_checks.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {

constexpr int kRowsABlock = 4;  // warps of a block

/// A (B, T, H, D) view in device memory.
template <class T>
struct Heads {
  T* data;
  std::int64_t batch_stride, row_stride, head_stride;

  __device__ T* at(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + b * batch_stride + t * row_stride + h * head_stride;
  }
};

template <class T>
Heads<const T> heads(const ConstHeadView& view) {
  return {static_cast<const T*>(view.data), view.batch_stride, view.row_stride, view.head_stride};
}
template <class T>
Heads<T> heads(const HeadView& view) {
  return {static_cast<T*>(view.data), view.batch_stride, view.row_stride, view.head_stride};
}

/// Whether every head's vector begins at a multiple of 16 bytes.
inline bool vectors_aligned(const ConstHeadView& view) {
  const auto aligned = [&](std::int64_t stride) {
    return stride * static_cast<std::int64_t>(size_of(view.dtype)) % 16 == 0;
  };
  return reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && aligned(view.batch_stride) && aligned(view.row_stride) &&
         aligned(view.head_stride);
}

/// The constant in the denominator; one that is compiled in where only the ordinary softmax is.
__device__ __forceinline__ float softmax_constant([[maybe_unused]] const AttentionProblem& p) {
#if defined(OUTEFFHOP_VANILLA_SOFTMAX)
  return 0.0f;
#else
  return p.n;
#endif
}

/// Keys [begin, end): what is visible is always one run of keys.
struct KeyRange {
  std::int64_t begin, end;
};

__device__ __forceinline__ KeyRange visible_keys(const AttentionProblem& p, std::int64_t b, std::int64_t i) {
  KeyRange keys{0, p.Tk};
  if (p.key_lengths) keys.end = min(keys.end, std::int64_t{p.key_lengths[b]});
  if (p.causal) keys.end = min(keys.end, i + p.causal_offset + 1);
  if (p.key_ranges) {
    keys.begin = p.key_ranges[2 * (b * p.Tq + i)];
    keys.end = min(keys.end, std::int64_t{p.key_ranges[2 * (b * p.Tq + i) + 1]});
  }
  return keys;
}

template <class T>
__device__ __forceinline__ float dot(const T* a, const T* b, std::int64_t D, bool aligned) {
  float sum = 0.0f;
  for (std::int64_t d = 0; d < D; d += kVector) {
    const int valid = static_cast<int>(min(std::int64_t{kVector}, D - d));
    const Vector x = load_vector(a + d, valid, aligned), y = load_vector(b + d, valid, aligned);
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum += x.at[e] * y.at[e];
  }
  return sum;
}

/// What dropout multiplies p_ij by: 0, the scale, or 1 without dropout.
__device__ __forceinline__ float dropout_factor(const AttentionProblem& p, std::int64_t b, std::int64_t h, std::int64_t i,
                                                std::int64_t j) {
  if (p.dropout.threshold == 0) return 1.0f;
  // dropout_bits_tiled, with its word chosen by selects: an index known only at run time would put the block into memory.
  const auto row = static_cast<std::uint32_t>(h * p.Tq + i), column = static_cast<std::uint32_t>(j);
  const PhiloxBlock random = sample_block(p.dropout.key, p.dropout.sample_ids[b], row, column / 32 * 4 + column % 8 / 2);
  const std::uint32_t lower = column & 8 ? random.w[1] : random.w[0], upper = column & 8 ? random.w[3] : random.w[2];
  const std::uint32_t bits = ((column & 16 ? upper : lower) >> (16 * (column % 2))) & 0xffffu;
  return bits < p.dropout.threshold ? 0.0f : p.dropout.scale;
}

/// One of 32 rows' channels, dealt to the lanes: channel c * 32 + lane.
template <int kChannels>
struct Channels {
  float at[kChannels] = {};

  /// Adds weight * row.
  template <class T>
  __device__ __forceinline__ void add(float weight, const T* row, std::int64_t D) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      if (c * kWarp + lane < D) at[c] += weight * static_cast<float>(row[c * kWarp + lane]);
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) at[c] *= factor;
  }
  template <class T>
  __device__ __forceinline__ void store(T* row, std::int64_t D, bool accumulate) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      if (c * kWarp + lane < D)
        row[c * kWarp + lane] = static_cast<T>(accumulate ? static_cast<float>(row[c * kWarp + lane]) + at[c] : at[c]);
  }
};

/// A warp's 32 weights, passed to all of its lanes through shared memory: 8 reads of 16 bytes, where shuffles would be 32.
class Weights {
 public:
  static constexpr std::size_t kSharedBytes =
      kRowsABlock * kWarp * sizeof(float);  ///< of the block, for each set of weights

  /// Set `number` (0, 1, ...) of the running warp.
  __device__ explicit Weights(int number)
      : base_((number * kRowsABlock + static_cast<int>(threadIdx.x) / kWarp) * kWarp),
        one_(shared_array<float>(0, base_ + kWarp)),
        four_(shared_array<float4>(0, (base_ + kWarp) / 4)) {}

  /// Between two barriers of the warp: what this lane gives.
  __device__ __forceinline__ void put(float weight) const { one_[base_ + static_cast<int>(threadIdx.x) % kWarp] = weight; }
  /// After the second barrier: sum += weight[t] * row(t) for t < count.
  template <int kChannels, class Row>
  __device__ __forceinline__ void add_rows(Channels<kChannels>& sum, int count, std::int64_t D, Row row) const {
    for (int t = 0; t < count; t += 4) {
      const float4 weight = four_[(base_ + t) / 4];
      sum.add(weight.x, row(t), D);
      if (t + 1 < count) sum.add(weight.y, row(t + 1), D);
      if (t + 2 < count) sum.add(weight.z, row(t + 2), D);
      if (t + 3 < count) sum.add(weight.w, row(t + 3), D);
    }
  }

 private:
  int base_;
  SharedArray<float> one_;
  SharedArray<float4> four_;
};

/// Calls f(std::integral_constant<int, channels a lane>) for a head size of at most kMaxHeadSize.
template <class Function>
void with_channels(std::int64_t D, Function&& f) {
  if (D <= 32) return f(std::integral_constant<int, 1>{});
  if (D <= 64) return f(std::integral_constant<int, 2>{});
  if (D <= 128) return f(std::integral_constant<int, 4>{});
  f(std::integral_constant<int, 8>{});
}

}  // namespace outeffhop::cuda
