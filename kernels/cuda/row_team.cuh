// Who works on one row of C channels, for ops that need sums over the row: a warp for the usual widths, several rows a block
// and no barrier; a block for long rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vector.cuh"

namespace outeffhop::cuda {

enum class Team { warp, block };

constexpr int kWarpsABlock = 4;          ///< of a kernel whose teams are warps
constexpr int kLargestBlockTeam = 512;   ///< threads
constexpr int kTeamScratch = 2 * kWarp;  ///< floats of shared memory, from its begin, that a block team sums in

/// Which kernel takes a row: its team, and how many vectors each thread of it holds in registers; 0: none, the kernel reads
/// the row again for each pass and takes any length and alignment.
template <Team team, int held>
struct RowPlan {
  static constexpr Team kTeam = team;
  static constexpr int kHeld = held;
  static constexpr int kRowsABlock = team == Team::warp ? kWarpsABlock : 1;
  static constexpr int kMostThreads = team == Team::warp ? kWarpsABlock * kWarp : kLargestBlockTeam;

  /// Of a block, for rows of C channels.
  static unsigned threads(std::int64_t C) {
    if (team == Team::warp) return kMostThreads;
    const std::int64_t vectors = (C + kVector - 1) / kVector, wanted = held == 0 ? vectors : (vectors + held - 1) / held;
    return static_cast<unsigned>(std::min<std::int64_t>((wanted + kWarp - 1) / kWarp * kWarp, kLargestBlockTeam));
  }
};

/// Calls f(RowPlan{}) with the plan for rows of C channels. A thread of a block team holds up to kBlockHeld vectors.
/// `aligned`: every row of every tensor begins at a multiple of 16 bytes.
template <int kBlockHeld, class Function>
void with_row_plan(std::int64_t C, bool aligned, Function&& f) {
  if (!aligned || C % kVector != 0 || C > kVector * kBlockHeld * kLargestBlockTeam) return f(RowPlan<Team::block, 0>{});
  if (C <= 1 * kWarp * kVector) return f(RowPlan<Team::warp, 1>{});
  if (C <= 3 * kWarp * kVector) return f(RowPlan<Team::warp, 3>{});  // BERT-base, OPT-125m: 768
  if (C <= 4 * kWarp * kVector) return f(RowPlan<Team::warp, 4>{});  // BERT-large, OPT-350m: 1024
  f(RowPlan<Team::block, kBlockHeld>{});
}

/// Two sums over a team's threads, in each of them. A block team calls as a whole.
template <Team kTeam>
__device__ __forceinline__ float2 team_sums(float a, float b) {
  a = warp_reduce(a, Sum{});
  b = warp_reduce(b, Sum{});
  if constexpr (kTeam == Team::block) {
    const auto scratch = shared_array<float>(0, kTeamScratch);
    const int warp = static_cast<int>(threadIdx.x) / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
    if (threadIdx.x % kWarp == 0) {
      scratch[2 * warp] = a;
      scratch[2 * warp + 1] = b;
    }
    __syncthreads();
    a = scratch[0];
    b = scratch[1];
    for (int other = 1; other < warps; ++other) {
      a += scratch[2 * other];
      b += scratch[2 * other + 1];
    }
    __syncthreads();  // before the next sums are written
  }
  return make_float2(a, b);
}

/// A thread's place, and the vectors of a row that it has: every team-th one.
template <Team kTeam>
struct TeamPlace {
  int threads, thread;        ///< of the team; this one's number
  std::uint32_t row, stride;  ///< the first row that the team works on; from it to the next

  __device__ __forceinline__ TeamPlace() {
    const auto number = static_cast<int>(threadIdx.x);
    if constexpr (kTeam == Team::warp) {
      threads = kWarp;
      thread = number % kWarp;
      row = blockIdx.x * kWarpsABlock + number / kWarp;
      stride = gridDim.x * kWarpsABlock;
    } else {
      threads = static_cast<int>(blockDim.x);
      thread = number;
      row = blockIdx.x;
      stride = gridDim.x;
    }
  }
  /// First channel of the thread's vector k.
  __device__ __forceinline__ int channel(int k) const { return (k * threads + thread) * kVector; }
};

}  // namespace outeffhop::cuda
