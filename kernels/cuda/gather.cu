// GatherRows and ScatterRows: copies of whole rows, one warp a row, in units of 16 bytes where rows allow it and of elements
// where not. Both are bound by memory: gathering reads the rows whose index is not negative and writes all `count`;
// scattering writes all of d_x as zeros (a memset) and then its labelled rows again, a second time for 15 % of them in BERT.
// That is cheaper than an inverse index: one launch instead of three.
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/storage.h"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {
namespace {

constexpr int kThreads = 256, kRowsABlock = kThreads / kWarp;
constexpr int kInFlight = 4;  ///< units that a lane loads before it stores the first

/// to[0..units) = from[0..units), or 0 where from is null, by one warp.
template <class Unit>
__device__ __forceinline__ void copy_row(const Unit* from, Unit* to, std::int64_t units) {
  for (std::int64_t first = threadIdx.x % kWarp; first < units; first += kInFlight * kWarp) {
    Unit held[kInFlight] = {};
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (from && first + k * kWarp < units) held[k] = from[first + k * kWarp];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k)
      if (first + k * kWarp < units) to[first + k * kWarp] = held[k];
  }
}

template <class Unit>
__global__ void gather_rows_kernel(const Unit* x,              // (rows of x, units)
                                   Unit* out,                  // (count, units)
                                   const std::int32_t* index,  // (count) negative: a row of zeros
                                   std::int64_t count, std::int64_t units) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowsABlock + threadIdx.x / kWarp;
  if (row >= count) return;
  const std::int64_t from = index[row];
  copy_row(from < 0 ? nullptr : x + from * units, out + row * units, units);
}

template <class Unit>
__global__ void scatter_rows_kernel(const Unit* d_out,          // (count, units)
                                    Unit* d_x,                  // (rows of d_x, units)
                                    const std::int32_t* index,  // (count) distinct, or negative: a row that goes nowhere
                                    std::int64_t count, std::int64_t units) {
  const std::int64_t row = std::int64_t{blockIdx.x} * kRowsABlock + threadIdx.x / kWarp;
  if (row >= count) return;
  const std::int64_t to = index[row];
  if (to >= 0) copy_row(d_out + row * units, d_x + to * units, units);
}

/// Calls f(Unit{}, units): what rows of C elements of both tensors are copied in, and how many of them.
template <class Function>
void with_units(const ConstTensor& from, const ConstTensor& to, std::int64_t C, const char* op, Function&& f) {
  with_storage(to.dtype, op, [&](auto element) {
    if (vectors_aligned(from, C) && vectors_aligned(to, C)) return f(Words{}, C / kInWords<decltype(element)>);
    f(element, C);
  });
}

}  // namespace

void gather_rows(const Context& context, const GatherRows& op) {
  require_same(op.out.dtype, op.x, "gathering rows", "x");
  if (op.count * op.C == 0) return;
  with_units(op.x, op.out, op.C, "gathering rows", [&](auto unit, std::int64_t units) {
    using Unit = decltype(unit);
    launch({.kernel = "gather_rows", .grid = blocks_for(op.count, kRowsABlock), .block = kThreads, .stream = context.stream},
           gather_rows_kernel<Unit>, static_cast<const Unit*>(op.x.data), static_cast<Unit*>(op.out.data), op.index,
           op.count, units);
  });
}

void scatter_rows(const Context& context, const ScatterRows& op) {
  require_same(op.d_x.dtype, op.d_out, "scattering rows", "d_out");
  if (op.rows * op.C == 0) return;
  const std::size_t bytes = static_cast<std::size_t>(op.rows * op.C) * size_of(op.d_x.dtype);
  OUTEFFHOP_CUDA(cudaMemsetAsync(op.d_x.data, 0, bytes, context.stream));
  if (op.count == 0) return;
  with_units(op.d_out, op.d_x, op.C, "scattering rows", [&](auto unit, std::int64_t units) {
    using Unit = decltype(unit);
    launch(
        {.kernel = "scatter_rows", .grid = blocks_for(op.count, kRowsABlock), .block = kThreads, .stream = context.stream},
        scatter_rows_kernel<Unit>, static_cast<const Unit*>(op.d_out.data), static_cast<Unit*>(op.d_x.data), op.index,
        op.count, units);
  });
}

}  // namespace outeffhop::cuda
