// What lanes of a warp and threads of a block tell each other on the executor, and what it says of those that do not come.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cuda/reduce.cuh"
#include "tests/catch.h"
#include "tests/simt/simt_support.h"

namespace outeffhop::test {
namespace {

constexpr unsigned kFull = 0xffffffffu;

int linear_thread() { return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x); }

}  // namespace

// --- What lanes tell each other.

namespace {

enum class Kind { index, up, down, exchange };

template <class T>
__global__ void shuffle_kernel(T* out, Kind kind, int argument, int width) {
  const T mine = static_cast<T>(1000 + threadIdx.x);
  T got{};
  if (kind == Kind::index) got = __shfl_sync(kFull, mine, argument, width);
  if (kind == Kind::up) got = __shfl_up_sync(kFull, mine, static_cast<unsigned>(argument), width);
  if (kind == Kind::down) got = __shfl_down_sync(kFull, mine, static_cast<unsigned>(argument), width);
  if (kind == Kind::exchange) got = __shfl_xor_sync(kFull, mine, argument, width);
  out[threadIdx.x] = got;
}

/// By the CUDA C++ Programming Guide's words: a lane sees its segment as lanes [0, width).
int lane_read(Kind kind, int lane, int argument, int width) {
  const int segment = lane / width, within = lane % width;
  switch (kind) {
    case Kind::index:
      return segment * width + ((argument % width) + width) % width;
    case Kind::up:
      return within - argument < 0 ? lane : lane - argument;
    case Kind::down:
      return within + argument >= width ? lane : lane + argument;
    case Kind::exchange:
      return (lane ^ argument) / width > segment ? lane : lane ^ argument;
  }
  return -1;
}

template <class T>
void check_shuffles() {
  bool right = true;
  for (const Kind kind : {Kind::index, Kind::up, Kind::down, Kind::exchange})
    for (int width = 1; width <= 32; width *= 2)
      for (int argument = kind == Kind::index ? -3 : 0; argument < (kind == Kind::index ? 40 : 32); ++argument) {
        std::vector<T> out(64);
        launch({.kernel = "shuffle", .grid = 1, .block = 64}, shuffle_kernel<T>, out.data(), kind, argument, width);
        for (int thread = 0; thread < 64; ++thread)
          right &= out[thread] == static_cast<T>(1000 + thread / 32 * 32 + lane_read(kind, thread % 32, argument, width));
      }
  CHECK(right);
}

}  // namespace

TEST_CASE("shuffles are what the programming guide says, for every width") {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    check_shuffles<int>();
    check_shuffles<double>();
    check_shuffles<float>();
  }
}

namespace {

__global__ void vote_kernel(unsigned* out, unsigned predicates) {
  const unsigned lane = threadIdx.x % 32, mask = lane < 8 ? 0x000000ffu : 0xffffff00u;
  const int mine = static_cast<int>(predicates >> lane & 1u);
  unsigned* to = out + threadIdx.x * 6;
  to[0] = __ballot_sync(kFull, mine);
  to[1] = static_cast<unsigned>(__any_sync(kFull, mine));
  to[2] = static_cast<unsigned>(__all_sync(kFull, mine));
  to[3] = __ballot_sync(mask, mine);
  to[4] = static_cast<unsigned>(__any_sync(mask, mine));
  to[5] = static_cast<unsigned>(__all_sync(mask, mine));
}

}  // namespace

TEST_CASE("votes, of whole warps and of parts") {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    for (const unsigned votes : {0u, kFull, 0xffu, 0xffffff00u, 0x00010080u, 0x7fffffffu}) {
      std::vector<unsigned> out(64 * 6);
      launch({.kernel = "vote", .grid = 1, .block = 64}, vote_kernel, out.data(), votes);
      bool right = true;
      for (unsigned thread = 0; thread < 64; ++thread) {
        const unsigned mask = thread % 32 < 8 ? 0xffu : 0xffffff00u;
        const unsigned expected[6] = {votes,        votes != 0,          votes == kFull,
                                      votes & mask, (votes & mask) != 0, (votes & mask) == mask};
        right &= std::equal(expected, expected + 6, out.begin() + thread * 6);
      }
      CHECK(right);
    }
  }
}

namespace {

__global__ void barrier_vote_kernel(int* out, int limit) {
  const int thread = linear_thread();
  out[thread * 3] = __syncthreads_count(thread < limit);
  out[thread * 3 + 1] = __syncthreads_or(thread < limit);
  __syncthreads();
  out[thread * 3 + 2] = __syncthreads_and(thread < limit);
}

}  // namespace

TEST_CASE("barriers that count") {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    for (const dim3 block : {dim3(1), dim3(50), dim3(16, 4, 2)})
      for (const int limit : {0, 1, 37, 50, 128}) {
        const int threads = static_cast<int>(block.x * block.y * block.z);
        std::vector<int> out(static_cast<std::size_t>(threads) * 3);
        launch({.kernel = "barrier_vote", .grid = 2, .block = block}, barrier_vote_kernel, out.data(), limit);
        bool right = true;
        for (int thread = 0; thread < threads; ++thread) {
          right &= out[thread * 3] == std::min(limit, threads) && out[thread * 3 + 1] == (limit > 0) &&
                   out[thread * 3 + 2] == (limit >= threads);
        }
        CHECK(right);
      }
  }
}

namespace {

__global__ void reduce_kernel(const float* x, float* sums, float* maxima, double* doubles) {
  const auto scratch = cuda::shared_array<float>(0, cuda::kReduceValues);
  const auto wide = cuda::shared_array<double>(128, cuda::kReduceValues);
  const float value = x[threadIdx.x];
  sums[threadIdx.x] = cuda::block_reduce(value, scratch, cuda::Sum{});
  maxima[threadIdx.x] = cuda::block_reduce(value, scratch, cuda::Max{});
  doubles[threadIdx.x] = cuda::block_reduce(static_cast<double>(value), wide, cuda::Sum{});
}

}  // namespace

TEST_CASE("reductions over a block, of every size, the same bits in every order") {
  for (unsigned threads = 32; threads <= 1024; threads += threads < 256 ? 32 : 256) {
    std::vector<float> x(threads), first;
    for (unsigned i = 0; i < threads; ++i) x[i] = std::sin(static_cast<float>(i * i)) * 3.0f;
    for (const simt::Schedule& schedule : kSchedules) {
      const Scheduled scheduled(schedule);
      std::vector<float> sums(threads), maxima(threads);
      std::vector<double> doubles(threads);
      launch({.kernel = "reduce", .grid = 1, .block = threads, .shared_bytes = 128 + 256}, reduce_kernel, x.data(),
             sums.data(), maxima.data(), doubles.data());
      const double exact = std::accumulate(x.begin(), x.end(), 0.0);
      CHECK(std::abs(sums[0] - exact) < 1e-3);
      CHECK(std::abs(doubles[0] - exact) < 1e-10);
      CHECK(maxima == std::vector<float>(threads, *std::max_element(x.begin(), x.end())));
      CHECK(sums == std::vector<float>(threads, sums[0]));
      CHECK(doubles == std::vector<double>(threads, doubles[0]));
      if (first.empty()) first = sums;
      CHECK(first == sums);
    }
    x[threads / 2] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> sums(threads), maxima(threads);
    std::vector<double> doubles(threads);
    launch({.kernel = "reduce", .grid = 1, .block = threads, .shared_bytes = 128 + 256}, reduce_kernel, x.data(),
           sums.data(), maxima.data(), doubles.data());
    CHECK(std::all_of(maxima.begin(), maxima.end(), [](float m) { return std::isnan(m); }));
  }
}

// --- Mistakes of lanes.

namespace {

enum class LaneMistake { two_shuffles, two_places, lanes_elsewhere, lanes_returned, not_in_mask, reads_outside, width, far };

__global__ void lane_mistake_kernel(LaneMistake mistake, int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  switch (mistake) {
    case LaneMistake::two_shuffles:
      HERE out[lane] = lane < 16 ? __shfl_xor_sync(kFull, lane, 1) : __shfl_down_sync(kFull, lane, 1u);
      break;
    case LaneMistake::two_places:
      if (lane < 16) {
        out[lane] = __shfl_xor_sync(kFull, lane, 1);
      } else {
        out[lane] = __shfl_xor_sync(kFull, lane, 1);
      }
      break;
    case LaneMistake::lanes_elsewhere:
      if (lane < 16) {
        out[lane] = __shfl_xor_sync(kFull, lane, 1);
      } else {
        HERE __syncthreads();
      }
      break;
    case LaneMistake::lanes_returned:
      if (lane >= 16) return;
      HERE out[lane] = __shfl_xor_sync(kFull, lane, 1);
      break;
    case LaneMistake::not_in_mask:
      HERE out[lane] = static_cast<int>(__ballot_sync(0x0000ffffu, 1));
      break;
    case LaneMistake::reads_outside:
      HERE if (lane < 16) out[lane] = __shfl_down_sync(0x0000ffffu, lane, 1u);
      break;
    case LaneMistake::width:
      HERE out[lane] = __shfl_down_sync(kFull, lane, 1u, 12);
      break;
    case LaneMistake::far:
      HERE out[lane] = __shfl_up_sync(kFull, lane, 32u);
      break;
  }
}

}  // namespace

TEST_CASE("lanes that do not come together are named") {
  const std::pair<LaneMistake, std::vector<std::string>> mistakes[] = {
      {LaneMistake::two_shuffles, {"__shfl_xor_sync with the mask 0xffffffff", "__shfl_down_sync with the mask 0xffffffff"}},
      {LaneMistake::two_places, {"is called while lanes of it wait at __shfl_xor_sync with the mask 0xffffffff in"}},
      {LaneMistake::lanes_elsewhere,
       {"the barrier is reached by 16 of 32 threads; 16 wait for lanes of their warp in collective_test.cpp"}},
      {LaneMistake::not_in_mask, {"lane ", "calls __ballot_sync with the mask 0x0000ffff, which leaves it out"}},
      {LaneMistake::reads_outside, {"in __shfl_down_sync lane 15 reads lane 16, which the mask 0x0000ffff leaves out"}},
      {LaneMistake::width, {"__shfl_down_sync has the width 12; it must be a power of two up to 32"}},
      {LaneMistake::far, {"__shfl_up_sync is told 32; it must be from 0 to 31"}},
  };
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    INFO(name_of(schedule));
    std::vector<int> out(64);
    for (const auto& [mistake, parts] : mistakes) {
      const auto run = [&, mistake = mistake] {
        launch({.kernel = "lane_mistake", .grid = 1, .block = 32}, lane_mistake_kernel, mistake, out.data());
      };
      std::string message = violation(run);
      CHECK(lacks(message, {"kernel lane_mistake, block (0, 0, 0), thread ("}) == "");
      CHECK(lacks(message, parts) == "");
    }
    // Found by the first lane that comes after the others returned, or when nobody can go on.
    const std::string message = violation([&] {
      launch({.kernel = "lane_mistake", .grid = 1, .block = 32}, lane_mistake_kernel, LaneMistake::lanes_returned,
             out.data());
    });
    CHECK((lacks(message, {"with the mask 0xffffffff waits for lane", "which has returned"}) == "" ||
           lacks(message, {"with the mask 0xffffffff is reached by the lanes 0x0000ffff only; 16 threads have returned"}) ==
               ""));
    CHECK(lacks(violation([&] {
                  launch({.kernel = "narrow", .grid = 1, .block = 48}, shuffle_kernel<int>, out.data(), Kind::up, 1, 32);
                }),
                {"kernel narrow", "waits for lane 16, which this block does not have"}) == "");
  }
}

namespace {

/// Halves of a warp that go different ways, each with its own mask: right.
__global__ void halves_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 16) {
    out[lane] = __shfl_xor_sync(0x0000ffffu, lane, 1) + __shfl_sync(0x0000ffffu, lane, 3, 16);
  } else {
    int sum = lane;
    for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffff0000u, sum, offset);
    out[lane] = sum;
  }
}

}  // namespace

TEST_CASE("parts of a warp go their own ways") {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    std::vector<int> out(32);
    launch({.kernel = "halves", .grid = 1, .block = 32}, halves_kernel, out.data());
    for (int lane = 0; lane < 32; ++lane) CHECK(out[lane] == (lane < 16 ? (lane ^ 1) + 3 : (16 + 31) * 8));
  }
}

// --- Mistakes at barriers.

namespace {

enum class BarrierMistake { returns_early, other_branch, two_places, one_more };

__global__ void barrier_mistake_kernel(BarrierMistake mistake) {
  const int thread = static_cast<int>(threadIdx.x);
  switch (mistake) {
    case BarrierMistake::returns_early:
      if (thread >= 60) return;
      HERE __syncthreads();
      break;
    case BarrierMistake::other_branch:
      HERE if (thread % 2 == 0) __syncthreads();
      break;
    case BarrierMistake::two_places:
      if (thread < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case BarrierMistake::one_more:
      HERE for (int i = 0; i < (thread == 5 ? 4 : 3); ++i) __syncthreads();
      break;
  }
}

}  // namespace

TEST_CASE("barriers that some threads miss are named") {
  const std::pair<BarrierMistake, std::string> mistakes[] = {
      {BarrierMistake::returns_early, "the barrier is reached by 60 of 64 threads; 4 have returned"},
      {BarrierMistake::other_branch, "the barrier is reached by 32 of 64 threads; 32 have returned"},
      {BarrierMistake::two_places,
       "this barrier is reached while other threads of the block wait at the one in collective_test"},
      {BarrierMistake::one_more, "the barrier is reached by 1 of 64 threads; 63 have returned"},
  };
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    INFO(name_of(schedule));
    for (const auto& [mistake, part] : mistakes) {
      const std::string message = violation([mistake = mistake] {
        launch({.kernel = "barrier_mistake", .grid = 3, .block = 64}, barrier_mistake_kernel, mistake);
      });
      CHECK(lacks(message, {"kernel barrier_mistake, block (", part}) == "");
    }
  }
}

}  // namespace outeffhop::test
