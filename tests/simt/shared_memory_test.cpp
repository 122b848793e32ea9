// Shared memory on the executor: what is right passes, in every order; what is wrong is named.
#include "kernels/cuda/shared_memory.cuh"

#include "kernels/tensor.h"
#include "tests/catch.h"
#include "tests/simt/simt_support.h"

namespace outeffhop::test {
namespace {

using cuda::shared_array;
constexpr unsigned kFull = 0xffffffffu;

/// What each schedule must say of a kernel.
template <class... Parameters, class... Arguments>
void check_violation(const std::vector<std::string>& parts, cuda::LaunchShape shape, void (*kernel)(Parameters...),
                     Arguments... arguments) {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    INFO(name_of(schedule));
    const std::string message = violation([&] { launch(shape, kernel, arguments...); });
    CHECK(lacks(message, {std::string("kernel ") + shape.kernel + ", block ("}) == "");
    CHECK(lacks(message, parts) == "");
  }
}

// --- Right ones.

/// Reverses a block's values through shared memory, several times over.
template <class T>
__global__ void reverse_kernel(const T* x, T* out, int times) {
  const int thread = static_cast<int>(threadIdx.x), count = static_cast<int>(blockDim.x);
  const auto values = shared_array<T>(16, count);
  T value = x[thread];
  for (int i = 0; i < times; ++i) {
    values[thread] = value;
    __syncthreads();
    value = values[count - 1 - thread];
    __syncthreads();
  }
  out[thread] = value;
}

template <class T>
void check_reverse(unsigned threads) {
  std::vector<T> x(threads), out(threads), expected(threads);
  for (unsigned i = 0; i < threads; ++i) x[i] = static_cast<T>(static_cast<float>(i % 200));
  for (unsigned i = 0; i < threads; ++i) expected[i] = x[threads - 1 - i];
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    launch({.kernel = "reverse", .grid = 3, .block = threads, .shared_bytes = 16 + threads * sizeof(T)}, reverse_kernel<T>,
           x.data(), out.data(), 3);
    bool right = true;
    for (unsigned i = 0; i < threads; ++i) right &= static_cast<double>(out[i]) == static_cast<double>(expected[i]);
    CHECK(right);
  }
}

}  // namespace

TEST_CASE("exchanges through shared memory, with barriers") {
  for (const unsigned threads : {1u, 31u, 64u, 250u, 1024u}) {
    check_reverse<float>(threads);
    check_reverse<double>(threads);
    check_reverse<int>(threads);
    check_reverse<std::uint16_t>(threads);
  }
}

namespace {

/// A prefix sum within each warp, that only __syncwarp orders.
__global__ void warp_scan_kernel(int* out) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const auto sums = shared_array<int>(0, static_cast<int>(blockDim.x));
  sums[thread] = thread;
  for (int step = 1; step < 32; step *= 2) {
    __syncwarp();
    const int left = lane >= step ? sums[thread - step] : 0;
    __syncwarp();
    sums[thread] += left;
  }
  out[thread] = sums[thread];
}

/// Pairs, then pairs of pairs, and so on to the warp: a chain of barriers of parts of it.
__global__ void pairs_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const auto sums = shared_array<int>(0, 32);
  sums[lane] = lane + 1;
  for (int step = 1; step < 32; step *= 2) {
    const unsigned members = step == 16 ? kFull : ((1u << 2 * step) - 1) << lane / (2 * step) * (2 * step);
    __syncwarp(members);
    if (lane % (2 * step) == 0) sums[lane] += sums[lane + step];
  }
  __syncwarp();
  out[lane] = sums[0];
}

/// Counts in shared memory.
__global__ void histogram_kernel(int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto counts = shared_array<int>(0, 8);
  if (thread < 8) counts[thread] = 0;
  __syncthreads();
  atomicAdd(counts.address(thread % 8), 1);
  atomicAdd(counts.address(thread % 3), 1);
  __syncthreads();
  if (thread < 8) out[thread] = counts[thread];
}

}  // namespace

TEST_CASE("exchanges through shared memory that __syncwarp orders") {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    std::vector<int> out(80);
    launch({.kernel = "warp_scan", .grid = 2, .block = 64, .shared_bytes = 256}, warp_scan_kernel, out.data());
    for (int thread = 0; thread < 64; ++thread) {
      const int first = thread / 32 * 32;
      CHECK(out[thread] == (first + thread) * (thread - first + 1) / 2);
    }
    launch({.kernel = "pairs", .grid = 2, .block = 32, .shared_bytes = 128}, pairs_kernel, out.data());
    for (int lane = 0; lane < 32; ++lane) CHECK(out[lane] == 32 * 33 / 2);
  }
}

TEST_CASE("atomics in shared memory need no order among themselves") {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    std::vector<int> out(8);
    launch({.kernel = "histogram", .grid = 2, .block = 96, .shared_bytes = 32}, histogram_kernel, out.data());
    CHECK(out == std::vector<int>{44, 44, 44, 12, 12, 12, 12, 12});
  }
}

namespace {

struct alignas(16) Four {
  float at[4];
};

/// Elements read and written as the operators of SharedArray allow, of more than one type over the same bytes.
__global__ void operators_kernel(float* out) {
  const auto floats = shared_array<float>(0, 8);
  const auto fours = shared_array<Four>(0, 2);
  const auto halves = shared_array<bf16>(32, 4);
  fours[0] = Four{{1, 2, 3, 4}};
  fours[1] = fours[0];
  floats[5] += 10;
  floats[6] *= floats[5];
  floats[7] = floats[6] = 5;
  halves[3] = bf16(1.5f);
  halves[2] = halves[3];
  const Four second = fours[1];
  for (int i = 0; i < 4; ++i) out[i] = second.at[i] + floats[i];
  out[4] = static_cast<float>(halves[2]) * 2;
  out[5] = floats[5] > 11 && floats[0] < floats[5] ? 1 : 0;
}

}  // namespace

TEST_CASE("elements of shared arrays behave as on the device") {
  std::vector<float> out(6);
  launch({.kernel = "operators", .grid = 1, .block = 1, .shared_bytes = 40}, operators_kernel, out.data());
  CHECK(out == std::vector<float>{2, 14, 8, 9, 3, 1});
}

// --- Races.

namespace {

/// Thread t reads what thread t - 1 wrote: in forward order that is there, by luck, unless a barrier changed who goes first.
__global__ void missing_barrier_kernel(int* out, bool cleared) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto values = shared_array<int>(0, static_cast<int>(blockDim.x));
  if (cleared) {
    values[thread] = 0;
    __syncthreads();
  }
  HERE values[thread] = thread;
  HERE out[thread] = thread == 0 ? 0 : values[thread - 1];
}

/// The same within a warp: lanes that do not run in lockstep.
__global__ void missing_warp_barrier_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const auto values = shared_array<int>(0, 32);
  values[lane] = lane;
  const int seen = __shfl_xor_sync(kFull, lane, 1);  // brings the lanes together, but orders no memory
  HERE out[lane] = values[lane ^ 1] + seen;
}

/// Reads all, then writes with no barrier in between.
__global__ void write_after_read_kernel(int* out) {
  const int thread = static_cast<int>(threadIdx.x), count = static_cast<int>(blockDim.x);
  const auto values = shared_array<int>(0, count);
  values[thread] = thread;
  __syncthreads();
  HERE const int right = values[(thread + 1) % count];
  HERE values[thread] = right;
  __syncthreads();
  out[thread] = values[thread];
}

__global__ void two_writers_kernel() {
  const auto flag = shared_array<int>(0, 1);
  HERE flag[0] = 1;
}

/// A __syncwarp where another warp's values are read.
__global__ void other_warp_kernel(int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto values = shared_array<int>(0, 64);
  values[thread] = 0;
  __syncthreads();
  HERE values[thread] = thread;
  __syncwarp();
  HERE out[thread] = values[63 - thread];
}

/// Half a warp waits for itself many times, and then reads what the other half wrote.
__global__ void other_half_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const auto values = shared_array<int>(0, 32);
  values[lane] = lane;
  for (int i = 0; i < 3; ++i) __syncwarp(lane < 16 ? 0x0000ffffu : 0xffff0000u);
  out[lane] = values[lane / 16 * 16 + 15 - lane % 16];
  HERE out[lane] = values[31 - lane];
}

/// Atomics are ordered with nothing but atomics.
__global__ void read_beside_atomic_kernel(int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto count = shared_array<int>(0, 1);
  if (thread == 0) count[0] = 0;
  __syncthreads();
  HERE atomicAdd(count.address(0), 1);
  HERE out[thread] = count[0];
}

/// One thread may do what it likes, and a later barrier orders everything before it.
__global__ void late_race_kernel(int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto values = shared_array<int>(0, 64);
  values[thread] = thread;
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < 64; ++i) sum += values[i];
  __syncthreads();
  HERE if (thread == 0) values[5] = sum;
  HERE if (thread == 0) values[5] += 1;
  HERE if (thread == 40) sum = values[5];
  out[thread] = sum;
}

}  // namespace

TEST_CASE("accesses with no barrier in between are races, whatever values come out") {
  std::vector<int> out(64);
  {
    const Scheduled scheduled({simt::Order::forward});
    const auto race = [&] {
      launch({.kernel = "missing_barrier", .grid = 1, .block = 64, .shared_bytes = 256}, missing_barrier_kernel, out.data(),
             false);
    };
    CHECK(lacks(violation(race),
                {"kernel missing_barrier, block (0, 0, 0), thread (1, 0, 0), shared_memory_test.cpp",
                 "a read of shared memory at offset 0, which thread 0 writes with no barrier in between"}) == "");
  }
  const auto shape = [](const char* name, unsigned threads) {
    return cuda::LaunchShape{.kernel = name, .grid = 2, .block = threads, .shared_bytes = 256};
  };
  check_violation({"shared memory at offset", "with no barrier in between"}, shape("missing_barrier", 64),
                  missing_barrier_kernel, out.data(), true);
  check_violation({"a read of shared memory at offset", "which thread", "writes with no barrier in between"},
                  shape("missing_warp_barrier", 32), missing_warp_barrier_kernel, out.data());
  check_violation({"shared memory at offset", "with no barrier in between"}, shape("write_after_read", 64),
                  write_after_read_kernel, out.data());
  check_violation({"a write to shared memory at offset 0, which thread", "writes with no barrier in between"},
                  shape("two_writers", 64), two_writers_kernel);
  check_violation({"shared memory at offset", "with no barrier in between"}, shape("other_warp", 64), other_warp_kernel,
                  out.data());
  check_violation({"a read of shared memory at offset", "writes with no barrier in between"}, shape("other_half", 32),
                  other_half_kernel, out.data());
  check_violation({"shared memory at offset 0, which", "with no barrier in between"}, shape("read_beside_atomic", 64),
                  read_beside_atomic_kernel, out.data());
  check_violation({"shared memory at offset 20, which thread", "with no barrier in between"}, shape("late_race", 64),
                  late_race_kernel, out.data());
}

// --- What is not there.

namespace {

enum class Misuse { beyond_array, before_array, array_beyond_block, misaligned, unwritten, half_written, pointer, atomic };

__global__ void misuse_kernel(Misuse misuse, int* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto values = shared_array<int>(0, 32);
  if (misuse != Misuse::unwritten && misuse != Misuse::half_written && misuse != Misuse::atomic) values[thread] = thread;
  switch (misuse) {
    case Misuse::beyond_array:
      HERE out[thread] = values[thread + 1];
      break;
    case Misuse::before_array:
      HERE out[thread] = values[thread - 32];
      break;
    case Misuse::array_beyond_block:
      HERE out[thread] = shared_array<int>(128, 33)[0];
      break;
    case Misuse::misaligned:
      HERE out[thread] = static_cast<int>(shared_array<double>(4, 1)[0]);
      break;
    case Misuse::unwritten:
      HERE out[thread] = values[thread];
      break;
    case Misuse::half_written:
      shared_array<std::uint16_t>(0, 64)[2 * thread] = 1;
      HERE out[thread] = values[thread];
      break;
    case Misuse::pointer:
      HERE simt::shared_offset(values.address(31), 500, simt::Where::current());
      break;
    case Misuse::atomic:
      HERE atomicAdd(values.address(thread), 1);
      break;
  }
}

/// Block 0 writes, and every block reads: block 0 what it wrote, block 1 what was left behind.
__global__ void left_behind_kernel(int* out, unsigned writing) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto values = shared_array<int>(0, 32);
  if (blockIdx.x == writing) values[thread] = thread;
  HERE out[thread] = values[thread];
}

}  // namespace

TEST_CASE("shared memory that is not there, or that nobody wrote") {
  std::vector<int> out(64);
  const std::pair<Misuse, std::string> misuses[] = {
      {Misuse::beyond_array, "element 32 of a shared array of 32"},
      {Misuse::before_array, " of a shared array of 32"},
      {Misuse::array_beyond_block, "a shared array of 132 bytes at offset 128, where the launch asked for 256 bytes"},
      {Misuse::misaligned, "a shared array at offset 4 of elements aligned to 8 bytes"},
      {Misuse::unwritten, "a read of shared memory at offset"},
      {Misuse::half_written, ", which this block has not written"},
      {Misuse::pointer, "an access to 500 bytes of shared memory lies outside of the block's 256 bytes"},
      {Misuse::atomic, ", which this block has not written"},
  };
  for (const auto& [misuse, part] : misuses) {
    const std::vector<std::string> parts = misuse == Misuse::beyond_array
                                               ? std::vector<std::string>{part, "thread (31, 0, 0)"}
                                               : std::vector<std::string>{part};
    // Where the last thread is the one, others may be caught first at what it has not written yet.
    if (misuse == Misuse::beyond_array) {
      const Scheduled scheduled({simt::Order::reverse});
      const std::string message = violation([&, misuse = misuse] {
        launch({.kernel = "misuse", .grid = 1, .block = 32, .shared_bytes = 256}, misuse_kernel, misuse, out.data());
      });
      CHECK(lacks(message, parts) == "");
    } else {
      check_violation(parts, {.kernel = "misuse", .grid = 1, .block = 32, .shared_bytes = 256}, misuse_kernel, misuse,
                      out.data());
    }
  }
  check_violation({"a shared array of 128 bytes at offset 0, where the launch asked for 64 bytes"},
                  {.kernel = "too_little", .grid = 1, .block = 32, .shared_bytes = 64}, left_behind_kernel, out.data(), 0u);
}

TEST_CASE("what an earlier block left in shared memory is not to be read") {
  std::vector<int> out(64);
  const cuda::LaunchShape two{.kernel = "left_behind", .grid = 2, .block = 32, .shared_bytes = 128};
  const auto with = [&](simt::Order order, unsigned writing) {
    const Scheduled scheduled({order});
    return violation([&] { launch(two, left_behind_kernel, out.data(), writing); });
  };
  CHECK(lacks(with(simt::Order::forward, 0), {"kernel left_behind, block (1, 0, 0)", "which this block has not written"}) ==
        "");
  CHECK(lacks(with(simt::Order::reverse, 1), {"kernel left_behind, block (0, 0, 0)", "which this block has not written"}) ==
        "");
  // Nor what an earlier kernel left.
  const cuda::LaunchShape one{.kernel = "left_behind", .grid = 1, .block = 32, .shared_bytes = 128};
  CHECK(violation([&] { launch(one, left_behind_kernel, out.data(), 0u); }) == "no violation");
  check_violation({"which this block has not written"}, one, left_behind_kernel, out.data(), 7u);
}

}  // namespace outeffhop::test
