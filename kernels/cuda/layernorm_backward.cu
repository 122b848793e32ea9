// LayerNormBackward: one pass over memory for d_sum and d_x, which also adds up d_weight and d_bias. Reads d_out, sum and
// d_sum_in, writes d_sum and d_x, once each: 8 to 10 bytes a channel in bf16 for about 20 FLOPs. Bound by memory.
//
// A block has a group of rows, four of them at a time (two in fp32), and each of its threads has eight channels: their part
// of d_weight and d_bias stays in sixteen registers from row to row. Four rows at a time are what keeps memory busy: their
// loads are under way together, and one barrier serves all their sums. How rows fall into groups depends on their number and
// length alone, not on the GPU. Each group writes its partial sums, 3 MB in all, which stay in the L2 cache until a second
// kernel adds them up, in order. Nowhere is a long chain of additions in fp32: 16,384 rows of 768 channels are 512 groups of
// 32 rows, added in 32 parts of 16.
//
// Rows that do not take 16-byte accesses or have more than 4096 channels are read twice, their partial sums kept in memory.
#include <algorithm>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {
namespace {

constexpr int kMostThreads = 512;
/// Most threads in all blocks together: 12 warps on each multiprocessor of an H100, 14 of an A100, all of them resident.
constexpr int kThreadsInAll = 512 * 96;
template <class T>
constexpr int kRowsAtOnce = 8 / static_cast<int>(sizeof(T));

template <class T>
struct Backward {
  const T* d_out;      // (rows, C)
  const T* d_sum_in;   // (rows, C) or null
  const T* sum;        // (rows, C)
  const float* mean;   // (rows)
  const float* rstd;   // (rows)
  const T* weight;     // (C)
  T* d_sum;            // (rows, C); may be d_sum_in or d_out: each thread reads what it writes first
  T* d_x;              // (rows, C) or null
  float* partials;     // (groups, 2, slots): d_weight and d_bias of each group
  std::int64_t slots;  // C, rounded up
  std::uint32_t rows, rows_a_sample;
  std::int64_t C;
  float inverse_C;
  Dropout dropout;
  bool aligned;
};

/// What one row's gradients are made of.
struct RowStatistics {
  float mean, rstd, mean_g, mean_gh;
};

/// h = (sum - mean) rstd.
__device__ __forceinline__ float normed(float sum, const RowStatistics& row) { return (sum - row.mean) * row.rstd; }

/// One vector's part of d_weight, d_bias, and of the sums over the row of g and of g h. Elements that are 0 in d_out add 0.
__device__ __forceinline__ void accumulate(const Vector& d_out, const Vector& sum, const Vector& weight,
                                           const RowStatistics& row, Vector& d_weight, Vector& d_bias, float& sum_g,
                                           float& sum_gh) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float h = normed(sum.at[i], row), g = d_out.at[i] * weight.at[i];
    d_weight.at[i] += d_out.at[i] * h;
    d_bias.at[i] += d_out.at[i];
    sum_g += g;
    sum_gh += g * h;
  }
}

/// d_sum = d_sum_in + rstd (g - mean(g) - h mean(g h)).
__device__ __forceinline__ Vector gradient(const Vector& d_out, const Vector& d_sum_in, const Vector& sum,
                                           const Vector& weight, const RowStatistics& row) {
  Vector d_sum;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const float h = normed(sum.at[i], row), g = d_out.at[i] * weight.at[i];
    d_sum.at[i] = d_sum_in.at[i] + row.rstd * (g - row.mean_g - h * row.mean_gh);
  }
  return d_sum;
}

/// Stores d_sum, and d_x where it is wanted, from channel `channel` of row `row` on.
template <class T>
__device__ __forceinline__ void store_gradient(const Backward<T>& a, std::uint32_t row, std::int64_t channel, Vector d,
                                               const SampleRow& numbers, int valid, bool aligned) {
  const std::int64_t first = row * a.C + channel;
  store_vector(a.d_sum + first, d, valid, aligned);
  if (!a.d_x) return;
  if (a.dropout.threshold != 0) drop_vector(d, a.dropout, numbers.sample, numbers.row, channel);
  store_vector(a.d_x + first, d, valid, aligned);
}

/// A vector a thread; C is a multiple of kVector.
template <class T>
__global__ void __launch_bounds__(kMostThreads) layernorm_backward_kernel(Backward<T> a) {
  constexpr int kRows = kRowsAtOnce<T>;
  const auto thread = static_cast<int>(threadIdx.x), warps = static_cast<int>(blockDim.x) / kWarp;
  const int channel = thread * kVector;
  const bool in_row = channel < a.C;
  const Vector weight = in_row ? load_vector(a.weight + channel, kVector, true) : Vector{};
  Vector d_weight{}, d_bias{};

  int turn = 0;  // scratch has two sides, so that one barrier is enough: all are done with a side before it is written again
  for (std::uint32_t first = blockIdx.x * kRows; first < a.rows; first += gridDim.x * kRows, turn ^= 1) {
    // Rows beyond the last are 0 and add nothing.
    PackedVector<T> d_out[kRows] = {}, sum[kRows] = {}, d_sum_in[kRows] = {};
    RowStatistics rows[kRows] = {};
    SampleRow numbers[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!in_row || first + r >= a.rows) continue;
      d_out[r] = load_packed(a.d_out + (first + r) * a.C + channel);
      sum[r] = load_packed(a.sum + (first + r) * a.C + channel);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (a.d_sum_in && in_row && first + r < a.rows) d_sum_in[r] = load_packed(a.d_sum_in + (first + r) * a.C + channel);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (first + r >= a.rows) continue;
      rows[r].mean = a.mean[first + r];
      rows[r].rstd = a.rstd[first + r];
      numbers[r] = sample_row(a.dropout, first + r, a.rows_a_sample);
    }

    const auto scratch = shared_array<float>(turn * warps * 2 * kRows * static_cast<int>(sizeof(float)), warps * 2 * kRows);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float sum_g = 0.0f, sum_gh = 0.0f;
      accumulate(unpack(d_out[r]), unpack(sum[r]), weight, rows[r], d_weight, d_bias, sum_g, sum_gh);
      sum_g = warp_reduce(sum_g, Sum{});
      sum_gh = warp_reduce(sum_gh, Sum{});
      if (thread % kWarp != 0) continue;
      scratch[thread / kWarp * 2 * kRows + 2 * r] = sum_g;
      scratch[thread / kWarp * 2 * kRows + 2 * r + 1] = sum_gh;
    }
    __syncthreads();
#pragma unroll 4
    for (int warp = 0; warp < warps; ++warp) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        rows[r].mean_g += scratch[warp * 2 * kRows + 2 * r];
        rows[r].mean_gh += scratch[warp * 2 * kRows + 2 * r + 1];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!in_row || first + r >= a.rows) continue;
      rows[r].mean_g *= a.inverse_C;
      rows[r].mean_gh *= a.inverse_C;
      const Vector d = gradient(unpack(d_out[r]), unpack(d_sum_in[r]), unpack(sum[r]), weight, rows[r]);
      store_gradient(a, first + r, channel, d, numbers[r], kVector, true);
    }
  }
  float* partials = a.partials + blockIdx.x * 2 * a.slots;
  if (!in_row) return;
  store_vector(partials + channel, d_weight, kVector, true);
  store_vector(partials + a.slots + channel, d_bias, kVector, true);
}

/// Rows of any length and alignment, one at a time, read twice; their partial sums are added to in memory.
template <class T>
__global__ void __launch_bounds__(kMostThreads, 1) layernorm_backward_any_kernel(Backward<T> a) {
  const auto scratch = shared_array<float>(0, kReduceValues);
  float* mine = a.partials + blockIdx.x * 2 * a.slots;
  for (std::uint32_t number = blockIdx.x; number < a.rows; number += gridDim.x) {
    const std::int64_t first = number * a.C;
    const SampleRow numbers = sample_row(a.dropout, number, a.rows_a_sample);
    RowStatistics row{a.mean[number], a.rstd[number], 0.0f, 0.0f};
    const auto for_vectors = [&](auto&& f) {
      for (std::int64_t channel = threadIdx.x * kVector; channel < a.C; channel += blockDim.x * kVector) {
        const int valid = static_cast<int>(min(std::int64_t{kVector}, a.C - channel));
        f(load_vector(a.d_out + first + channel, valid, a.aligned), load_vector(a.sum + first + channel, valid, a.aligned),
          load_vector(a.weight + channel, valid, a.aligned), channel, valid);
      }
    };

    float sum_g = 0.0f, sum_gh = 0.0f;
    for_vectors([&](const Vector& d_out, const Vector& sum, const Vector& weight, std::int64_t channel, int valid) {
      const bool begun = number != blockIdx.x;  // the first row writes
      Vector d_weight{}, d_bias{};
      if (begun) {
        d_weight = load_vector(mine + channel, valid, false);
        d_bias = load_vector(mine + a.slots + channel, valid, false);
      }
      accumulate(d_out, sum, weight, row, d_weight, d_bias, sum_g, sum_gh);
      store_vector(mine + channel, d_weight, valid, false);
      store_vector(mine + a.slots + channel, d_bias, valid, false);
    });
    row.mean_g = block_reduce(sum_g, scratch, Sum{}) * a.inverse_C;
    row.mean_gh = block_reduce(sum_gh, scratch, Sum{}) * a.inverse_C;
    for_vectors([&](const Vector& d_out, const Vector& sum, const Vector& weight, std::int64_t channel, int valid) {
      const Vector d_in = a.d_sum_in ? load_vector(a.d_sum_in + first + channel, valid, a.aligned) : Vector{};
      store_gradient(a, number, channel, gradient(d_out, d_in, sum, weight, row), numbers, valid, a.aligned);
    });
  }
}

constexpr int kSumSlots = 32;                     ///< that a block of the second kernel adds up; a thread has four
constexpr int kSumThreads = kSumSlots / 4;        ///< that read one group's
constexpr int kFewestParts = 4, kMostParts = 32;  ///< groups that a block reads at a time, times
constexpr int kInFlight = 8;                      ///< those that a thread loads before it adds the first

/// d_weight and d_bias += their partial sums. Part p of a block adds the groups p, p + parts, ...; then one thread a slot
/// adds the parts.
__global__ void __launch_bounds__(kSumThreads* kMostParts, 2)
    layernorm_add_groups_kernel(const float* partials,  // (groups, 2, slots)
                                float* d_weight,        // (C) or null
                                float* d_bias,          // (C) or null
                                std::int64_t slots, std::int64_t C, int groups) {
  const int parts = static_cast<int>(blockDim.x) / kSumThreads, thread = static_cast<int>(threadIdx.x);
  const int part = thread / kSumThreads, place = thread % kSumThreads * 4;
  const auto sums = shared_array<float>(0, kSumSlots * parts);
  const std::int64_t first = std::int64_t{blockIdx.x} * kSumSlots;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  for (int group = part; group < groups; group += kInFlight * parts) {
    float4 next[kInFlight] = {};
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (group + k * parts < groups)
        next[k] = *reinterpret_cast<const float4*>(partials + (group + k * parts) * 2 * slots + first + place);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      sum = make_float4(sum.x + next[k].x, sum.y + next[k].y, sum.z + next[k].z, sum.w + next[k].w);
  }
  sums[part * kSumSlots + place] = sum.x;
  sums[part * kSumSlots + place + 1] = sum.y;
  sums[part * kSumSlots + place + 2] = sum.z;
  sums[part * kSumSlots + place + 3] = sum.w;
  __syncthreads();
  if (thread >= kSumSlots) return;
  float total = 0.0f;
#pragma unroll 8
  for (int other = 0; other < parts; ++other) total += sums[other * kSumSlots + thread];
  const bool bias = first >= slots;
  const std::int64_t channel = first + thread - (bias ? slots : 0);
  float* to = bias ? d_bias : d_weight;
  if (to && channel < C) to[channel] += total;
}

template <class T>
void backward(const Context& context, const LayerNormBackward& op) {
  bool aligned = true;
  for (const ConstTensor& tensor : {op.d_out, op.d_sum_in, op.sum, op.weight, ConstTensor(op.d_sum), ConstTensor(op.d_x)})
    aligned = aligned && vectors_aligned(tensor, op.C);
  Backward<T> a{.d_out = static_cast<const T*>(op.d_out.data),
                .d_sum_in = static_cast<const T*>(op.d_sum_in.data),
                .sum = static_cast<const T*>(op.sum.data),
                .mean = static_cast<const float*>(op.mean.data),
                .rstd = static_cast<const float*>(op.rstd.data),
                .weight = static_cast<const T*>(op.weight.data),
                .d_sum = static_cast<T*>(op.d_sum.data),
                .d_x = static_cast<T*>(op.d_x.data),
                .partials = nullptr,
                .slots = (op.C + kSumSlots - 1) / kSumSlots * kSumSlots,
                .rows = row_count(op.B * op.T, "layer norm backward"),
                .rows_a_sample = static_cast<std::uint32_t>(op.T),
                .C = op.C,
                .inverse_C = static_cast<float>(1.0 / static_cast<double>(op.C)),
                .dropout = op.dropout,
                .aligned = aligned};
  const bool held = aligned && op.C % kVector == 0 && op.C <= kVector * kMostThreads;
  const std::int64_t warps = (op.C + kVector * kWarp - 1) / (kVector * kWarp);
  const auto threads = static_cast<int>(std::min<std::int64_t>(warps * kWarp, kMostThreads));
  // More than one block has when C is large: then fewer groups, so that the partial sums stay as many.
  const auto most = static_cast<int>(std::max<std::int64_t>(1, kThreadsInAll / (warps * kWarp)));
  const auto groups = static_cast<int>(std::min<std::int64_t>(most, blocks_for(a.rows, held ? kRowsAtOnce<T> : 1)));
  const int parts = std::clamp((groups + 3) / 4 * 4, kFewestParts, kMostParts);  // whole warps
  a.partials = context.workspace.array<float>(static_cast<std::size_t>(groups * 2 * a.slots));
  const int scratch = held ? 2 * threads / kWarp * 2 * kRowsAtOnce<T> : kReduceValues;
  launch({.kernel = "layernorm_backward",
          .grid = static_cast<unsigned>(groups),
          .block = static_cast<unsigned>(threads),
          .shared_bytes = static_cast<std::size_t>(scratch) * sizeof(float),
          .stream = context.stream},
         held ? layernorm_backward_kernel<T> : layernorm_backward_any_kernel<T>, a);
  launch({.kernel = "layernorm_add_groups",
          .grid = blocks_for(2 * a.slots, kSumSlots),
          .block = static_cast<unsigned>(parts * kSumThreads),
          .shared_bytes = static_cast<std::size_t>(parts * kSumSlots) * sizeof(float),
          .stream = context.stream},
         layernorm_add_groups_kernel, a.partials, static_cast<float*>(op.d_weight.data), static_cast<float*>(op.d_bias.data),
         a.slots, op.C, groups);
}

}  // namespace

void layernorm_backward(const Context& context, const LayerNormBackward& op) {
  const char* name = "layer norm backward";
  const DType dtype = op.d_out.dtype;
  require_same(dtype, op.d_sum_in, name, "d_sum_in");
  require_same(dtype, op.sum, name, "the sum");
  require_same(dtype, op.weight, name, "the weight");
  require_same(dtype, op.d_sum, name, "d_sum");
  require_same(dtype, op.d_x, name, "d_x");
  require_same(DType::f32, op.mean, name, "the mean");
  require_same(DType::f32, op.rstd, name, "rstd");
  require_same(DType::f32, op.d_weight, name, "d_weight");
  require_same(DType::f32, op.d_bias, name, "d_bias");
  if (op.B * op.T * op.C == 0) return;
  with_storage(dtype, name, [&](auto element) { backward<decltype(element)>(context, op); });
}

}  // namespace outeffhop::cuda
