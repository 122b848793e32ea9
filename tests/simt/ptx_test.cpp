// The stand-ins of kernels/cuda/ptx against plain loops, and what they must see. Layouts are written out here by the words
// of the PTX ISA (matrix fragments for mma.m16n8k16 with .bf16 operands; ldmatrix), from which the stand-ins may not differ.
#include <cmath>

#include "kernels/cuda/ptx/async_copy.cuh"
#include "kernels/cuda/ptx/load_matrix.cuh"
#include "kernels/cuda/ptx/mma.cuh"
#include "kernels/cuda/shared_memory.cuh"
#include "tests/catch.h"
#include "tests/simt/simt_support.h"
#include "tests/simt/tensor_core_product.cuh"
#include "tests/test_support.h"

namespace outeffhop::test {
namespace {

using cuda::FragmentA;
using cuda::FragmentB;
using cuda::FragmentC;
using cuda::shared_array;

std::vector<bf16> random_bf16(std::size_t count, int seed) {
  auto rng = generator(static_cast<std::uint64_t>(seed));
  std::normal_distribution<float> normal;
  std::vector<bf16> values(count);
  for (bf16& value : values) value = bf16(normal(rng));
  return values;
}

std::uint32_t pair_of(bf16 first, bf16 second) { return first.bits | static_cast<std::uint32_t>(second.bits) << 16; }

// --- mma

/// groupID = laneid >> 2, threadID_in_group = laneid % 4. A: row = groupID for ai where 0 <= i < 2 or 4 <= i < 6, else
/// groupID + 8; column = threadID_in_group * 2 + (i & 1), + 8 for i >= 4. B: row = threadID_in_group * 2 + (i & 1), + 8 for
/// i >= 2; column = groupID. C: row = groupID for i < 2, else groupID + 8; column = threadID_in_group * 2 + (i & 1).
__global__ void mma_kernel(const bf16* a,   // (16, 16)
                           const bf16* b,   // (16, 8)
                           const float* c,  // (16, 8)
                           float* d) {      // (16, 8)
  const int lane = static_cast<int>(threadIdx.x), group = lane >> 2, in_group = lane % 4;
  FragmentA left;
  for (int i = 0; i < 8; i += 2) {
    const int row = (0 <= i && i < 2) || (4 <= i && i < 6) ? group : group + 8;
    const int column = in_group * 2 + (i >= 4 ? 8 : 0);
    left.pair[i / 2] = pair_of(a[row * 16 + column], a[row * 16 + column + 1]);
  }
  FragmentB right;
  for (int i = 0; i < 4; i += 2) {
    const int row = in_group * 2 + (i >= 2 ? 8 : 0), column = group;
    right.pair[i / 2] = pair_of(b[row * 8 + column], b[(row + 1) * 8 + column]);
  }
  FragmentC sum;
  const auto at = [&](int i) { return (i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1); };
  for (int i = 0; i < 4; ++i) sum.at[i] = c[at(i)];
  cuda::mma_16x8x16(sum, left, right);
  for (int i = 0; i < 4; ++i) {
    d[at(i)] = sum.at[i];
    if (cuda::accumulator_row(lane, i) * 8 + cuda::accumulator_column(lane, i) != at(i)) d[at(i)] = NAN;
  }
}

}  // namespace

TEST_CASE("a tensor-core step is the product of its fragments") {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    for (int seed = 0; seed < 20; ++seed) {
      const std::vector<bf16> a = random_bf16(256, 3 * seed), b = random_bf16(128, 3 * seed + 1);
      std::vector<float> c(128), d(128);
      for (std::size_t i = 0; i < 128; ++i) c[i] = static_cast<float>(std::sin(static_cast<double>(i) + seed));
      launch({.kernel = "mma", .grid = 1, .block = 32}, mma_kernel, a.data(), b.data(), c.data(), d.data());
      double worst = 0;
      for (int row = 0; row < 16; ++row)
        for (int column = 0; column < 8; ++column) {
          double expected = c[row * 8 + column], magnitude = std::abs(expected);
          for (int k = 0; k < 16; ++k) {
            const double term = static_cast<double>(static_cast<float>(a[row * 16 + k])) *
                                static_cast<double>(static_cast<float>(b[k * 8 + column]));
            expected += term;
            magnitude += std::abs(term);
          }
          worst = std::max(worst, std::abs(d[row * 8 + column] - expected) / magnitude);
        }
      CHECK(worst < 17 * 0x1p-24);  // 16 roundings to fp32
    }
  }
}

TEST_CASE("every position of a fragment is its own element") {
  // One 1 in A and one in B: one 1 in the product, where rows and columns say.
  for (int k = 0; k < 16; ++k)
    for (int row = 0; row < 16; ++row) {
      const int column = (row + k) % 8;
      std::vector<bf16> a(256), b(128);
      const std::vector<float> c(128);
      std::vector<float> d(128), expected(128);
      a[static_cast<std::size_t>(row * 16 + k)] = bf16(1.0f);
      b[static_cast<std::size_t>(k * 8 + column)] = bf16(1.0f);
      expected[static_cast<std::size_t>(row * 8 + column)] = 1;
      launch({.kernel = "mma", .grid = 1, .block = 32}, mma_kernel, a.data(), b.data(), c.data(), d.data());
      CHECK(d == expected);
    }
}

// --- ldmatrix

namespace {

/// Matrix j's row r is at 16-byte place places[8 j + r] of shared memory; element e of it counts 8 * place + e.
__global__ void load_matrix_kernel(std::uint32_t* out,  // (32, 4)
                                   const int* places,   // (32)
                                   int count, bool transposed) {
  const int lane = static_cast<int>(threadIdx.x);
  const auto numbers = shared_array<std::uint16_t>(0, 64 * 8);
  for (int i = lane; i < 64 * 8; i += 32) numbers[i] = static_cast<std::uint16_t>(i);
  __syncwarp();
  const auto rows = shared_array<bf16>(0, 64 * 8);
  // What lanes beyond the matrices' rows give is ignored.
  const bf16* row = lane < 8 * count ? rows.address(8 * places[lane]) : nullptr;
  std::uint32_t one[1], two[2], four[4];
  if (count == 1) transposed ? cuda::load_matrix_x1_transposed(one, row) : cuda::load_matrix_x1(one, row);
  if (count == 2) transposed ? cuda::load_matrix_x2_transposed(two, row) : cuda::load_matrix_x2(two, row);
  if (count == 4) transposed ? cuda::load_matrix_x4_transposed(four, row) : cuda::load_matrix_x4(four, row);
  for (int j = 0; j < count; ++j) out[lane * 4 + j] = count == 1 ? one[j] : count == 2 ? two[j] : four[j];
}

}  // namespace

TEST_CASE("ldmatrix brings every element where the PTX ISA says") {
  std::vector<int> places(32);
  for (int i = 0; i < 32; ++i) places[static_cast<std::size_t>(i)] = (i * 37 + 11) % 64;  // rows anywhere
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    for (const int count : {1, 2, 4})
      for (const bool transposed : {false, true}) {
        std::vector<std::uint32_t> out(128);
        launch({.kernel = "load_matrix", .grid = 1, .block = 32, .shared_bytes = 1024}, load_matrix_kernel, out.data(),
               places.data(), count, transposed);
        bool right = true;
        for (int lane = 0; lane < 32; ++lane)
          for (int j = 0; j < count; ++j)
            for (int i = 0; i < 2; ++i) {
              const int row = transposed ? lane % 4 * 2 + i : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + i;
              right &= (out[lane * 4 + j] >> (16 * i) & 0xffffu) == static_cast<unsigned>(8 * places[8 * j + row] + column);
            }
        CHECK(right);
      }
  }
}

namespace {

enum class LoadMistake { misaligned, outside, no_barrier, missing_lane };

__global__ void load_mistake_kernel(LoadMistake mistake, std::uint32_t* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const auto rows = shared_array<bf16>(0, 32 * 8);
  for (int i = lane; i < 32 * 8; i += 32) rows[i] = bf16(0.0f);
  __syncwarp();
  if (mistake == LoadMistake::no_barrier) {
    HERE for (int i = 0; i < 8; ++i) rows[8 * lane + i] = bf16(1.0f);
  }
  std::uint32_t four[4];
  if (mistake == LoadMistake::missing_lane && lane == 7) return;
  const int beyond = mistake == LoadMistake::misaligned ? 4 : mistake == LoadMistake::outside ? 32 * 8 : 0;
  HERE cuda::load_matrix_x4(four, rows.address(8 * lane) + (lane == 9 ? beyond : 0));
  out[lane] = four[0];
}

}  // namespace

TEST_CASE("ldmatrix sees wrong rows and missing barriers") {
  const std::pair<LoadMistake, std::string> mistakes[] = {
      {LoadMistake::misaligned, "ldmatrix is given a row at offset 152 of shared memory; it must be a multiple of 16"},
      {LoadMistake::outside, "an access to 16 bytes of shared memory lies outside of the block's 512 bytes"},
      {LoadMistake::no_barrier, "a read of shared memory at offset"},
      {LoadMistake::missing_lane, "ldmatrix with the mask 0xffffffff"},
  };
  std::vector<std::uint32_t> out(32);
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    for (const auto& [mistake, part] : mistakes) {
      const std::string message = violation([&, mistake = mistake] {
        launch({.kernel = "load_mistake", .grid = 1, .block = 32, .shared_bytes = 512}, load_mistake_kernel, mistake,
               out.data());
      });
      CHECK(lacks(message, {"kernel load_mistake, block (0, 0, 0), thread (", part}) == "");
    }
  }
}

// --- cp.async

namespace {

/// Copies with every size, filled up with zeros after `valid` bytes, to the middle of an array that is written around them.
template <int bytes>
__global__ void copy_kernel(const std::uint8_t* x, std::uint8_t* out, int valid) {
  const int thread = static_cast<int>(threadIdx.x), count = static_cast<int>(blockDim.x);
  const auto copied = shared_array<std::uint8_t>(16, count * bytes);
  const void* from = valid > 0 ? x + thread * bytes : nullptr;
  if constexpr (bytes == 16) cuda::copy_async_16(copied.address(thread * bytes), from, valid);
  if constexpr (bytes == 8) cuda::copy_async_8(copied.address(thread * bytes), from, valid);
  if constexpr (bytes == 4) cuda::copy_async_4(copied.address(thread * bytes), from, valid);
  cuda::commit_copies();
  cuda::wait_for_copies<0>();
  __syncthreads();
  const int other = count - 1 - thread;
  for (int i = 0; i < bytes; ++i) out[other * bytes + i] = copied[other * bytes + i];
}

template <int bytes>
void check_copies() {
  constexpr unsigned kThreads = 70;
  alignas(16) std::uint8_t x[kThreads * bytes];
  for (unsigned i = 0; i < sizeof x; ++i) x[i] = static_cast<std::uint8_t>(i * 7 + 1);
  for (int valid = 0; valid <= bytes; ++valid) {
    std::vector<std::uint8_t> out(sizeof x, 99), expected(x, x + sizeof x);
    for (unsigned i = 0; i < sizeof x; ++i)
      if (static_cast<int>(i % bytes) >= valid) expected[i] = 0;
    launch({.kernel = "copy", .grid = 1, .block = kThreads, .shared_bytes = 16 + sizeof x}, copy_kernel<bytes>, x,
           out.data(), valid);
    CHECK(out == expected);
  }
}

/// Changes the source between the copy and the wait for it.
__global__ void late_kernel(int* x, int* out) {
  const auto copied = shared_array<int>(0, 8);
  x[0] = 1;
  cuda::copy_async_4(copied.address(0), x);
  cuda::commit_copies();
  x[0] = 2;
  cuda::copy_async_4(copied.address(1), x);
  cuda::commit_copies();
  x[0] = 3;
  cuda::wait_for_copies<1>();
  out[0] = copied[0];
  x[0] = 4;
  cuda::commit_copies();  // an empty group
  cuda::wait_for_copies<2>();
  x[0] = 5;
  cuda::wait_for_copies<1>();
  out[1] = copied[1];
}

}  // namespace

TEST_CASE("asynchronous copies, with zeros behind") {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    check_copies<16>();
    check_copies<8>();
    check_copies<4>();
  }
}

TEST_CASE("an asynchronous copy lands as late as it may") {
  int x = 0, out[2] = {};
  launch({.kernel = "late", .grid = 1, .block = 1, .shared_bytes = 32}, late_kernel, &x, out);
  CHECK(out[0] == 3);
  CHECK(out[1] == 5);
}

namespace {

enum class CopyMistake {
  no_wait,
  uncommitted,
  older_group,
  never_waited_for,
  no_barrier,
  overwritten,
  overtaken,
  read_before,
  misaligned,
  too_much,
  outside
};

__global__ void copy_mistake_kernel(CopyMistake mistake, const float* x, float* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto copied = shared_array<float>(0, 64 * 4);
  if (mistake == CopyMistake::read_before) {
    for (int i = 0; i < 4; ++i) copied[4 * thread + i] = 0;
    __syncthreads();
    HERE out[thread] = copied[(4 * thread + 4) % 256];
  }
  const bool wrong = thread == 5;
  const int bytes = mistake == CopyMistake::too_much && wrong ? 17 : 16;
  const int shift = mistake == CopyMistake::misaligned && wrong ? 2 : mistake == CopyMistake::outside && wrong ? 256 : 0;
  HERE cuda::copy_async_16(copied.address(4 * thread) + shift, x + 4 * thread, bytes);
  if (mistake == CopyMistake::never_waited_for) return;
  if (mistake != CopyMistake::uncommitted) cuda::commit_copies();
  if (mistake == CopyMistake::overwritten) {
    HERE copied[4 * thread] = 1;
  }
  if (mistake == CopyMistake::overtaken) {
    HERE cuda::copy_async_16(copied.address(4 * thread), x);
  }
  if (mistake == CopyMistake::older_group) {
    cuda::wait_for_copies<1>();
  } else if (mistake != CopyMistake::no_wait) {
    cuda::wait_for_copies<0>();
  }
  if (mistake != CopyMistake::no_barrier) __syncthreads();
  HERE out[thread] = copied[(4 * thread + 4) % 256];
  cuda::commit_copies();
  cuda::wait_for_copies<0>();
}

}  // namespace

TEST_CASE("asynchronous copies that are not waited for are seen") {
  const std::pair<CopyMistake, std::string> mistakes[] = {
      {CopyMistake::no_wait, "where an asynchronous copy of thread"},
      {CopyMistake::uncommitted, "where an asynchronous copy of thread"},
      {CopyMistake::older_group, "where an asynchronous copy of thread"},
      {CopyMistake::never_waited_for, "an asynchronous copy is begun that its thread never waits for"},
      {CopyMistake::no_barrier, "a read of shared memory at offset"},
      {CopyMistake::overwritten, "where an asynchronous copy of thread"},
      {CopyMistake::overtaken, "where an asynchronous copy of thread"},
      {CopyMistake::read_before, "with no barrier in between"},
      {CopyMistake::misaligned, "cp.async of 16 bytes needs both addresses to be multiples of 16"},
      {CopyMistake::too_much, "cp.async of 16 bytes is told to read 17"},
      {CopyMistake::outside, "an access to 16 bytes of shared memory lies outside of the block's 1024 bytes"},
  };
  alignas(16) float x[256] = {};
  std::vector<float> out(64);
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    INFO(name_of(schedule));
    for (const auto& [mistake, part] : mistakes) {
      const std::string message = violation([&, mistake = mistake] {
        launch({.kernel = "copy_mistake", .grid = 2, .block = 64, .shared_bytes = 1024}, copy_mistake_kernel, mistake, x,
               out.data());
      });
      CHECK(lacks(message, {"kernel copy_mistake, block (", part}) == "");
    }
  }
}

// --- All of it: a matrix product.

namespace {

constexpr std::size_t kSize = cuda::kProductSize;

struct alignas(16) Operand {
  bf16 at[kSize * kSize];
};

template <cuda::PlantedBug bug>
std::string product(const Operand& a, const Operand& b, std::vector<float>& c) {
  return violation([&] {
    launch({.kernel = "product", .grid = 2, .block = cuda::kProductThreads, .shared_bytes = cuda::kProductShared},
           cuda::product_kernel<bug>, a.at, b.at, c.data());
  });
}

}  // namespace

TEST_CASE(
    "a tensor-core product, double-buffered, is right in every order, and its planted bugs are caught in every order") {
  using enum cuda::PlantedBug;
  Operand a, b;
  const std::vector<bf16> left = random_bf16(kSize * kSize, 1), right = random_bf16(kSize * kSize, 2);
  std::copy(left.begin(), left.end(), a.at);
  std::copy(right.begin(), right.end(), b.at);
  std::vector<float> first;
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    INFO(name_of(schedule));
    std::vector<float> c(kSize * kSize);
    CHECK(product<none>(a, b, c) == "no violation");
    double worst = 0;
    for (std::size_t row = 0; row < kSize; ++row)
      for (std::size_t column = 0; column < kSize; ++column) {
        double expected = 0, magnitude = 0;
        for (std::size_t k = 0; k < kSize; ++k) {
          const double term =
              static_cast<double>(static_cast<float>(a.at[row * kSize + k])) * static_cast<float>(b.at[k * kSize + column]);
          expected += term;
          magnitude += std::abs(term);
        }
        worst = std::max(worst, std::abs(c[row * kSize + column] - expected) / magnitude);
      }
    CHECK(worst < kSize * 0x1p-24);
    if (first.empty()) first = c;
    CHECK(c == first);

    const std::string in_flight = "where an asynchronous copy of thread", race = "with no barrier in between";
    CHECK(lacks(product<no_wait>(a, b, c), {"kernel product, block (", "tensor_core_product.cuh:", in_flight}) == "");
    CHECK(lacks(product<waits_for_older_group>(a, b, c), {"kernel product", "tensor_core_product.cuh:", in_flight}) == "");
    CHECK(lacks(product<no_commit>(a, b, c), {"kernel product", "tensor_core_product.cuh:", in_flight}) == "");
    CHECK(lacks(product<no_barrier_before_next_copy>(a, b, c), {"kernel product", "tensor_core_product.cuh:", race}) == "");
    // Whoever comes first finds tiles on their way, or none, or written by a thread it did not wait for.
    CHECK(lacks(product<no_barrier_after_wait>(a, b, c),
                {"kernel product", "tensor_core_product.cuh:", "a read of shared memory at offset"}) == "");
  }
}

}  // namespace outeffhop::test
