// The executor itself: who runs, in which order, on which launches, and what is left when a kernel fails.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <thread>

#include "tests/catch.h"
#include "tests/simt/simt_support.h"

namespace outeffhop::test {
namespace {

constexpr unsigned kFull = 0xffffffffu;

int linear_thread() { return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x); }
int linear_block() { return static_cast<int>((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x); }

// --- Who runs.

__global__ void mark_kernel(int* visits, int* turns, int* count) {
  const int threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  const int number = linear_block() * threads + linear_thread();
  ++visits[number];
  turns[atomicAdd(count, 1)] = number;
}

std::vector<int> turns_of(const simt::Schedule& schedule, dim3 grid, dim3 block) {
  const Scheduled scheduled(schedule);
  const std::size_t threads = std::size_t{grid.x} * grid.y * grid.z * block.x * block.y * block.z;
  std::vector<int> visits(threads), turns(threads);
  int count = 0;
  launch({.kernel = "mark", .grid = grid, .block = block}, mark_kernel, visits.data(), turns.data(), &count);
  CHECK(count == static_cast<int>(threads));
  CHECK(visits == std::vector<int>(threads, 1));
  return turns;
}

}  // namespace

TEST_CASE("every thread of a grid in three dimensions runs once") {
  for (const simt::Schedule& schedule : kSchedules)
    for (const dim3 grid : {dim3(1), dim3(3, 2, 2), dim3(7, 1, 3)})
      for (const dim3 block : {dim3(1), dim3(4, 3, 2), dim3(33), dim3(1, 31, 2), dim3(1024), dim3(1, 1, 64)})
        turns_of(schedule, grid, block);
}

TEST_CASE("schedules are forward, reverse, and permutations by seed") {
  const dim3 grid(2, 2), block(40, 2);
  std::vector<int> ascending(4 * 80);
  std::iota(ascending.begin(), ascending.end(), 0);
  CHECK(turns_of({simt::Order::forward}, grid, block) == ascending);
  CHECK(turns_of({simt::Order::reverse}, grid, block) == std::vector<int>(ascending.rbegin(), ascending.rend()));
  const std::vector<int> first = turns_of({simt::Order::random, 1}, grid, block);
  CHECK(first == turns_of({simt::Order::random, 1}, grid, block));
  CHECK(first != turns_of({simt::Order::random, 2}, grid, block));
  CHECK(std::is_permutation(first.begin(), first.end(), ascending.begin()));

  // Of three lanes every order comes.
  std::set<std::vector<int>> seen;
  for (std::uint64_t seed = 0; seed < 60; ++seed) seen.insert(turns_of({simt::Order::random, seed}, 1, 3));
  CHECK(seen.size() == 6);
}

namespace {

struct Tallies {
  int sum = 0, greatest = -1, least = 1 << 30;
  unsigned bits = 0, all = 0xffffffffu, exchanged = 12345, arrived = 0;
  unsigned long long wide = 0;
  unsigned last_block_saw = 0;
};

__global__ void atomic_kernel(Tallies* tallies) {
  const int number = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&tallies->sum, number);
  atomicMax(&tallies->greatest, number);
  atomicMin(&tallies->least, number);
  atomicOr(&tallies->bits, 1u << number % 32);
  atomicAnd(&tallies->all, ~(1u << number % 7));
  atomicExch(&tallies->exchanged, 7u);
  atomicAdd(&tallies->wide, 1ull << 32);
  // Any operation, by comparing and swapping.
  unsigned seen = tallies->arrived, before = seen + 1;
  while (before != seen) {
    before = seen;
    seen = atomicCAS(&tallies->arrived, before, before + 1);
  }
  if (seen + 1 == gridDim.x * blockDim.x) tallies->last_block_saw = tallies->arrived;
}

}  // namespace

TEST_CASE("atomics on integers") {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    Tallies tallies;
    launch({.kernel = "atomic", .grid = 5, .block = 48}, atomic_kernel, &tallies);
    CHECK(tallies.sum == 240 * 239 / 2);
    CHECK(tallies.greatest == 239);
    CHECK(tallies.least == 0);
    CHECK(tallies.bits == kFull);
    CHECK(tallies.all == (kFull & ~0x7fu));
    CHECK(tallies.exchanged == 7u);
    CHECK(tallies.wide == 240ull << 32);
    CHECK(tallies.arrived == 240u);
    CHECK(tallies.last_block_saw == 240u);
  }
}

// --- Lockstep.

namespace {

/// Lane l wants what lane l - 1 wrote. In forward order it has been written.
__global__ void lockstep_kernel(int* buffer, int* out, bool wait) {
  const int lane = static_cast<int>(threadIdx.x);
  buffer[lane] = 100 + lane;
  if (wait) __syncwarp();
  out[lane] = lane == 0 ? 0 : buffer[lane - 1];
}

std::vector<int> lockstep(const simt::Schedule& schedule, bool wait) {
  const Scheduled scheduled(schedule);
  std::vector<int> buffer(32), out(32);
  launch({.kernel = "lockstep", .grid = 1, .block = 32}, lockstep_kernel, buffer.data(), out.data(), wait);
  return out;
}

}  // namespace

TEST_CASE("lanes in lockstep are an assumption that some order refutes, through global memory too") {
  const std::vector<int> right = lockstep({simt::Order::forward}, true);
  CHECK(right[31] == 130);
  CHECK(lockstep({simt::Order::forward}, false) == right);  // by luck
  CHECK(lockstep({simt::Order::reverse}, false) != right);
  CHECK(lockstep({simt::Order::random, 1}, false) != right);
  for (const simt::Schedule& schedule : kSchedules) CHECK(lockstep(schedule, true) == right);
}

// --- Launches.

TEST_CASE("launches that no device takes") {
  std::vector<int> out(64);
  const auto attempt = [&](dim3 grid, dim3 block, std::size_t shared) {
    return lacks(violation([&] {
                   launch({.kernel = "shaped", .grid = grid, .block = block, .shared_bytes = shared}, lockstep_kernel,
                          out.data(), out.data(), true);
                 }),
                 {"kernel shaped cannot be launched with a grid of ("});
  };
  CHECK(attempt(0, 32, 0) == "");
  CHECK(attempt(1, 0, 0) == "");
  CHECK(attempt(1, 1025, 0) == "");
  CHECK(attempt(1, dim3(32, 33), 0) == "");
  CHECK(attempt(1, dim3(1, 1, 65), 0) == "");
  CHECK(attempt(dim3(1, 65536), 32, 0) == "");
  CHECK(attempt(1, dim3(1u << 31, 1u << 31, 4), 0) == "");
  CHECK(attempt(1, 32, simt::kMaxSharedBytes + 1) == "");
  CHECK(attempt(1, 32, simt::kMaxSharedBytes) != "");
}

namespace {

__global__ void launching_kernel() {
  simt::run({"inner", {}, {}, 0}, [] {});
}

}  // namespace

TEST_CASE("a kernel does not launch kernels, and what kernels call is not called outside of one") {
  CHECK(violation([] { launch({.kernel = "outer", .grid = 1, .block = 32}, launching_kernel); }) ==
        "kernel inner is launched from inside kernel outer");
  CHECK(lacks(violation([] { HERE __syncthreads(); }), {"outside of any kernel, executor_test.cpp"}) == "");
  CHECK(lacks(violation([] { HERE __shfl_xor_sync(kFull, 1, 1); }), {"outside of any kernel, executor_test.cpp"}) == "");
}

// --- After a violation.

namespace {

int alive = 0;
struct Counted {
  Counted() { ++alive; }
  ~Counted() { --alive; }
};

__global__ void unwound_kernel(int failing) {
  const Counted outer;
  __syncthreads();
  const Counted inner;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == failing) {
    HERE __shfl_sync(1u << (thread + 1) % 32, thread, 0);
  }
  __syncthreads();
}

__global__ void throwing_kernel(int failing) {
  const Counted counted;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) == failing) throw std::out_of_range("thrown by a kernel");
  __syncthreads();
}

__global__ void next_kernel(int* out) { out[threadIdx.x] = __syncthreads_count(threadIdx.x < 77); }

}  // namespace

TEST_CASE("a violation unwinds every thread, and the next kernel has their stacks") {
  for (const simt::Schedule& schedule : kSchedules) {
    const Scheduled scheduled(schedule);
    for (const int failing : {0, 40, 95}) {
      const std::string message =
          violation([&] { launch({.kernel = "unwound", .grid = 2, .block = 96}, unwound_kernel, failing); });
      CHECK(lacks(message, {"kernel unwound", "thread (" + std::to_string(failing) + ", 0, 0)", "which leaves it out"}) ==
            "");
      CHECK(alive == 0);
      CHECK_THROWS_AS(launch({.kernel = "throwing", .grid = 2, .block = 96}, throwing_kernel, failing), std::out_of_range);
      CHECK(alive == 0);
      std::vector<int> out(128);
      launch({.kernel = "next", .grid = 1, .block = 128}, next_kernel, out.data());
      CHECK(out == std::vector<int>(128, 77));
    }
  }
}

TEST_CASE("launches from several threads wait for each other") {
  std::vector<std::vector<int>> out(3, std::vector<int>(128));
  std::vector<std::thread> threads;
  for (std::vector<int>& mine : out)
    threads.emplace_back([&mine] {
      for (int i = 0; i < 20; ++i) {
        std::fill(mine.begin(), mine.end(), 0);
        launch({.kernel = "next", .grid = 2, .block = 128}, next_kernel, mine.data());
        if (mine != std::vector<int>(128, 77)) return;
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<int>& each : out) CHECK(each == std::vector<int>(128, 77));
}

#if defined(__SANITIZE_ADDRESS__)
namespace {

__global__ void overrun_kernel(const float* x, float* out, int count) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (thread <= count) out[thread] = x[thread];  // one too many
}

}  // namespace

// AddressSanitizer ends the program, so a child is sent.
TEST_CASE("AddressSanitizer sees what a kernel reads beyond global memory") {
  fault_lines.clear();
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    const std::vector<float> x(40);
    std::vector<float> out(64);
    launch({.kernel = "overrun", .grid = 1, .block = 64}, overrun_kernel, x.data(), out.data(), 40);
    _exit(0);
  }
  close(ends[1]);
  std::string report;
  char part[4096];
  for (ssize_t got = 0; (got = read(ends[0], part, sizeof part)) > 0;) report.append(part, static_cast<std::size_t>(got));
  close(ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK_FALSE((WIFEXITED(status) && WEXITSTATUS(status) == 0));
  CHECK(lacks(report, {"heap-buffer-overflow", "READ of size 4", "overrun_kernel"}) == "");
}
#endif

}  // namespace outeffhop::test
