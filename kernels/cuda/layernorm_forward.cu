// LayerNormForward: residual + dropout(x), its statistics and the norm in one pass over memory. Reads x and residual, writes
// sum and out, once each: 8 bytes a channel in bf16 for about 10 FLOPs, and as many integer operations where there is
// dropout. Bound by memory.
//
// A row of up to 1024 channels belongs to a warp, which holds it in registers from the first sum to the output.
// All of a lane's loads are under way before the first is waited for: 3 KB a warp for 768 channels of bf16, 64 registers, so
// that 32 warps a multiprocessor cover the latency of DRAM. Longer rows belong to a block in the same way. Rows that do not
// take 16-byte accesses, or that are longer than a block holds, are read again for each pass.
//
// The mean and variance are the corrected two-pass ones (Chan, Golub, LeVeque 1983): what fp32 lost of the mean is the mean
// of the deviations from it, so that a row far from 0 keeps its digits without a double.
#include <algorithm>

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/dropout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/storage.h"

namespace outeffhop::cuda {
namespace {

constexpr int kMostHeld = 4;  ///< vectors of a row that a thread holds

/// Who works on a row: a warp, with other warps of its block beside it.
struct WarpTeam {
  static constexpr int kRowsABlock = 4, kMostThreads = kRowsABlock * kWarp;
  std::uint32_t row = blockIdx.x * kRowsABlock + threadIdx.x / kWarp;
  int threads = kWarp, thread = static_cast<int>(threadIdx.x) % kWarp;
  /// Over the team, in each thread.
  __device__ __forceinline__ float sum(float value) const { return warp_reduce(value, Sum{}); }
};
/// Or a block.
struct BlockTeam {
  static constexpr int kMostThreads = 512;
  std::uint32_t row = blockIdx.x;
  int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  __device__ __forceinline__ float sum(float value) const {
    return block_reduce(value, shared_array<float>(0, kReduceValues), Sum{});
  }
};

template <class T>
struct Forward {
  const T* x;         // (rows, C)
  const T* residual;  // (rows, C) or null
  const T* weight;    // (C)
  const T* bias;      // (C)
  T* sum;             // (rows, C) or null; may be x or residual: each thread reads what it writes first
  T* out;             // (rows, C)
  float* mean;        // (rows) or null
  float* rstd;        // (rows) or null
  std::uint32_t rows, rows_a_sample;
  std::int64_t C;
  float inverse_C;
  float epsilon;
  Dropout dropout;
  bool aligned;
};

/// x = residual + dropout(x), of one vector, as it is stored.
template <class T>
__device__ __forceinline__ void add_up(Vector& x, const Vector& residual, const Forward<T>& a, const SampleRow& numbers,
                                       std::int64_t channel) {
  if (a.dropout.threshold != 0) drop_vector(x, a.dropout, numbers.sample, numbers.row, channel);
#pragma unroll
  for (int i = 0; i < kVector; ++i) x.at[i] += residual.at[i];
  x = unpack(pack<T>(x));
}

/// x becomes deviations from a mean of fp32; their sum and that of their squares are added to.
__device__ __forceinline__ void centre(Vector& x, float mean, int valid, float& sum, float& squares) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    x.at[i] = i < valid ? x.at[i] - mean : 0.0f;
    sum += x.at[i];
    squares += x.at[i] * x.at[i];
  }
}

struct Statistics {
  float correction, rstd;
};
/// From a row's deviations from `mean`, summed, and their squares, summed; thread 0 writes them down.
template <class T>
__device__ __forceinline__ Statistics statistics(const Forward<T>& a, std::uint32_t row, int thread, float mean, float sum,
                                                 float squares) {
  const float correction = sum * a.inverse_C;
  float variance = (squares - sum * correction) * a.inverse_C;
  if (variance < 0.0f) variance = 0.0f;  // a constant row, rounded; NaN stays
  const float rstd = 1.0f / sqrtf(variance + a.epsilon);
  if (thread == 0) {
    if (a.mean) a.mean[row] = mean + correction;
    if (a.rstd) a.rstd[row] = rstd;
  }
  return {correction, rstd};
}

__device__ __forceinline__ Vector normed(const Vector& deviation, const Statistics& s, const Vector& weight,
                                         const Vector& bias) {
  Vector out;
#pragma unroll
  for (int i = 0; i < kVector; ++i) out.at[i] = (deviation.at[i] - s.correction) * s.rstd * weight.at[i] + bias.at[i];
  return out;
}

/// The row in registers: a thread's vector k is number k threads + thread of it. C is a multiple of kVector.
template <class T, int kHeld, class Team>
__global__ void __launch_bounds__(Team::kMostThreads) layernorm_forward_kernel(Forward<T> a) {
  const Team team;
  const std::uint32_t row = team.row;
  if (row >= a.rows) return;  // a warp, which meets no barrier
  const std::int64_t first = row * a.C;
  const auto C = static_cast<int>(a.C);
  const auto channel = [&](int k) { return (k * team.threads + team.thread) * kVector; };

  PackedVector<T> x[kHeld] = {}, residual[kHeld] = {}, weight[kHeld] = {}, bias[kHeld] = {};
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (channel(k) < C) x[k] = load_packed(a.x + first + channel(k));
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (a.residual && channel(k) < C) residual[k] = load_packed(a.residual + first + channel(k));

  const SampleRow numbers = sample_row(a.dropout, row, a.rows_a_sample);
  // Vectors beyond the row are 0: they take part in everything but the deviations and the stores.
  Vector held[kHeld];
  float total = 0.0f;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    held[k] = unpack(x[k]);
    add_up(held[k], unpack(residual[k]), a, numbers, channel(k));
#pragma unroll
    for (int i = 0; i < kVector; ++i) total += held[k].at[i];
  }
  if (a.sum) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k)
      if (channel(k) < C) store_vector(a.sum + first + channel(k), held[k], kVector, true);
  }
  const float mean = team.sum(total) * a.inverse_C;

  float sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kHeld; ++k) centre(held[k], mean, channel(k) < C ? kVector : 0, sum, squares);
  sum = team.sum(sum);
  squares = team.sum(squares);
  const Statistics s = statistics(a, row, team.thread, mean, sum, squares);

#pragma unroll
  for (int k = 0; k < kHeld; ++k) {
    if (channel(k) >= C) continue;
    weight[k] = load_packed(a.weight + channel(k));
    bias[k] = load_packed(a.bias + channel(k));
  }
#pragma unroll
  for (int k = 0; k < kHeld; ++k)
    if (channel(k) < C)
      store_vector(a.out + first + channel(k), normed(held[k], s, unpack(weight[k]), unpack(bias[k])), kVector, true);
}

/// Rows of any length and alignment, a block each, read three times.
template <class T>
__global__ void __launch_bounds__(BlockTeam::kMostThreads, 1) layernorm_forward_any_kernel(Forward<T> a) {
  const BlockTeam team;
  const std::uint32_t row = team.row;
  const std::int64_t first = row * a.C;
  const SampleRow numbers = sample_row(a.dropout, row, a.rows_a_sample);
  const auto for_vectors = [&](auto&& f) {
    for (std::int64_t channel = team.thread * kVector; channel < a.C; channel += team.threads * kVector) {
      const int valid = static_cast<int>(min(std::int64_t{kVector}, a.C - channel));
      Vector x = load_vector(a.x + first + channel, valid, a.aligned);
      add_up(x, a.residual ? load_vector(a.residual + first + channel, valid, a.aligned) : Vector{}, a, numbers, channel);
      f(x, channel, valid);
    }
  };

  float total = 0.0f;
  for_vectors([&](const Vector& x, std::int64_t, int) {
    for (int i = 0; i < kVector; ++i) total += x.at[i];  // 0 beyond the row
  });
  const float mean = team.sum(total) * a.inverse_C;

  float sum = 0.0f, squares = 0.0f;
  for_vectors([&](Vector& x, std::int64_t, int valid) { centre(x, mean, valid, sum, squares); });
  sum = team.sum(sum);
  squares = team.sum(squares);
  const Statistics s = statistics(a, row, team.thread, mean, sum, squares);

  for_vectors([&](Vector& x, std::int64_t channel, int valid) {
    if (a.sum) store_vector(a.sum + first + channel, x, valid, a.aligned);
    centre(x, mean, valid, sum, squares);
    const Vector weight = load_vector(a.weight + channel, valid, a.aligned);
    const Vector bias = load_vector(a.bias + channel, valid, a.aligned);
    store_vector(a.out + first + channel, normed(x, s, weight, bias), valid, a.aligned);
  });
}

template <class T>
void forward(const Context& context, const LayerNormForward& op) {
  bool aligned = true;
  for (const ConstTensor& tensor : {op.x, op.residual, op.weight, op.bias, ConstTensor(op.sum), ConstTensor(op.out)})
    aligned = aligned && vectors_aligned(tensor, op.C);
  const Forward<T> a{.x = static_cast<const T*>(op.x.data),
                     .residual = static_cast<const T*>(op.residual.data),
                     .weight = static_cast<const T*>(op.weight.data),
                     .bias = static_cast<const T*>(op.bias.data),
                     .sum = static_cast<T*>(op.sum.data),
                     .out = static_cast<T*>(op.out.data),
                     .mean = static_cast<float*>(op.mean.data),
                     .rstd = static_cast<float*>(op.rstd.data),
                     .rows = row_count(op.B * op.T, "layer norm"),
                     .rows_a_sample = static_cast<std::uint32_t>(op.T),
                     .C = op.C,
                     .inverse_C = static_cast<float>(1.0 / static_cast<double>(op.C)),
                     .epsilon = static_cast<float>(op.epsilon),
                     .dropout = op.dropout,
                     .aligned = aligned};
  const auto run = [&](void (*kernel)(Forward<T>), int rows_a_block, std::int64_t threads, std::size_t scratch) {
    launch({.kernel = "layernorm_forward",
            .grid = blocks_for(a.rows, rows_a_block),
            .block = static_cast<unsigned>(threads),
            .shared_bytes = scratch * sizeof(float),
            .stream = context.stream},
           kernel, a);
  };
  const auto run_warps = [&](auto kernel) { run(kernel, WarpTeam::kRowsABlock, WarpTeam::kMostThreads, 0); };
  const auto run_blocks = [&](auto kernel, int held) {
    const std::int64_t of_a_warp = kVector * held * kWarp, warps = (op.C + of_a_warp - 1) / of_a_warp;
    run(kernel, 1, std::min<std::int64_t>(warps * kWarp, BlockTeam::kMostThreads), kReduceValues);
  };
  if (!aligned || op.C % kVector != 0 || op.C > kVector * kMostHeld * BlockTeam::kMostThreads) {
    run_blocks(layernorm_forward_any_kernel<T>, 1);
  } else if (op.C <= 1 * kVector * kWarp) {
    run_warps(layernorm_forward_kernel<T, 1, WarpTeam>);
  } else if (op.C <= 3 * kVector * kWarp) {  // BERT-base, OPT-125m: 768
    run_warps(layernorm_forward_kernel<T, 3, WarpTeam>);
  } else if (op.C <= kMostHeld * kVector * kWarp) {  // BERT-large, OPT-350m: 1024
    run_warps(layernorm_forward_kernel<T, kMostHeld, WarpTeam>);
  } else {
    run_blocks(layernorm_forward_kernel<T, kMostHeld, BlockTeam>, kMostHeld);
  }
}

}  // namespace

void layernorm_forward(const Context& context, const LayerNormForward& op) {
  const char* name = "layer norm";
  const DType dtype = op.out.dtype;
  require_same(dtype, op.x, name, "x");
  require_same(dtype, op.residual, name, "the residual");
  require_same(dtype, op.weight, name, "the weight");
  require_same(dtype, op.bias, name, "the bias");
  require_same(dtype, op.sum, name, "the sum");
  require_same(DType::f32, op.mean, name, "the mean");
  require_same(DType::f32, op.rstd, name, "rstd");
  if (op.B * op.T * op.C == 0) return;
  with_storage(dtype, name, [&](auto element) { forward<decltype(element)>(context, op); });
}

}  // namespace outeffhop::cuda
