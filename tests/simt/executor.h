// Runs kernels written in CUDA C++ on the CPU, so that every one of them is tested on a machine without a GPU.
//
// The sources of kernels/cuda are compiled as plain C++: overlay/ comes first in the include path, and its headers stand in
// for the CUDA runtime's, for cuBLASLt's, NCCL's, and for those of kernels/cuda that hold what only a GPU has (launching,
// shared memory, ptx/). One fiber (Boost.Context) is one CUDA thread; blocks run one after the other, on the OS thread that
// asked for it. A fiber runs until it has to wait for others: the most uneven progress there can be.
//
// What is checked, and reported as a Violation that names kernel, block, thread and source line:
//   - a barrier or warp collective that some threads miss, or that they reach at different places;
//   - a shuffle that reads a lane outside its mask;
//   - reads and writes beyond a shared array, and reads of shared memory nobody wrote in this block;
//   - two threads that touch the same shared memory, one of them writing, without a barrier in between. It is found from
//     what the barriers order, not from values that happen to come out wrong, so it does not depend on the schedule;
//   - an asynchronous copy whose destination is touched before it was waited for, or that is never waited for.
// Blocks, warps and lanes run in forward, reverse or random order (Schedule), which shows what else relies on one: races
// through global memory, for one. Accesses beyond global memory are found where AddressSanitizer watches its allocations.
// Not modelled: the memory model beyond barriers, timing, occupancy, the exact sums inside a tensor core. Shared memory is
// watched by pairs of bytes: threads that write neighbouring bytes of a pair count as a race.
//
// State is global, as threadIdx and its kin are in CUDA: one kernel runs at a time. A launch from another OS thread waits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

namespace outeffhop::simt {

using Where = std::source_location;

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
struct Extent3 {
  unsigned x = 1, y = 1, z = 1;
  std::uint64_t count() const { return std::uint64_t{x} * y * z; }
};

constexpr unsigned kWarpSize = 32;

/// In which order blocks, the warps of a block and the lanes of a warp have their turns.
enum class Order { forward, reverse, random };
struct Schedule {
  Order order = Order::forward;
  std::uint64_t seed = 0;  ///< of the random order: the same seed, the same turns
};
/// Of all launches from now on. At start: OUTEFFHOP_SIMT_ORDER ("forward", "reverse", "random" or "random:SEED"), else
/// forward.
void set_schedule(const Schedule& schedule);
Schedule schedule();

/// A kernel broke a rule of the machine it is written for.
class Violation : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Launch {
  std::string kernel;  ///< for messages
  Extent3 grid, block;
  std::size_t shared_bytes = 0;
};

/// Runs `thread` once for each thread of the launch; returns when the last block is done. Throws Violation; the kernel's
/// other threads are then unwound. A launch that no device takes (more than 1024 threads, 0 blocks, too much shared memory
/// for kMaxSharedBytes) is one too.
void run(const Launch& launch, const std::function<void()>& thread);

/// Dynamic shared memory a block can opt in to on sm_90. sm_80: 163 KiB.
constexpr std::size_t kMaxSharedBytes = 227 * 1024;

// What follows is for the stand-ins that kernels call, inside a running kernel.

extern Index3 current_thread, current_block;
extern Extent3 current_block_extent, current_grid_extent;

/// Throws Violation, with kernel, block, thread and `where`.
[[noreturn]] void violate(const std::string& what, const Where& where);

/// All threads of the block: returns when each has come. `votes`: how many brought a true `predicate`.
unsigned block_barrier(bool predicate, const Where& where);

/// The lanes of one warp named in a mask come together; the last one computes for all.
struct Collective {
  const char* name;             ///< "__shfl_xor_sync": lanes must come to the same
  std::uint32_t mask = 0;       ///< who comes
  std::uint32_t parameter = 0;  ///< must be the same in all lanes where uniform_parameter is set
  bool uniform_parameter = false;
};
/// What each lane brought to a collective, and where it wants its result, as it gave them to warp_collective().
struct Lanes {
  const void* brought[kWarpSize];
  void* taken[kWarpSize];
};
/// Computes for all lanes, once, when the last one has come, which runs it.
using CollectiveBody = void (*)(const Collective& collective, const Lanes& lanes, const Where& where);
void warp_collective(const Collective& collective, const void* in, void* out, CollectiveBody compute, const Where& where);
/// As __syncwarp: also orders the lanes' accesses to shared memory.
void warp_barrier(std::uint32_t mask, const Where& where);

unsigned lane();  ///< of the running thread, 0 to 31

/// The block's dynamic shared memory. Everything in it counts as unwritten when a block begins.
std::byte* shared_memory();
std::size_t shared_memory_bytes();
/// To be called before an access of the running thread to `bytes` of shared memory from `offset` on.
void note_shared_read(std::size_t offset, std::size_t bytes, const Where& where);
void note_shared_write(std::size_t offset, std::size_t bytes, const Where& where);
void note_shared_atomic(std::size_t offset, std::size_t bytes, const Where& where);
/// The offset of a pointer into shared memory; a violation if it is none, or if `bytes` do not fit behind it.
std::size_t shared_offset(const void* pointer, std::size_t bytes, const Where& where);
bool in_shared_memory(const void* pointer);

/// As cp.async: `bytes` from `offset` of shared memory on will be the first `from_bytes` at `from`, then zeros. That happens
/// at the latest moment allowed, in the wait_for_async_copies() that demands it; until then the source is not read and the
/// destination is not to be touched.
void async_copy(std::size_t offset, std::size_t bytes, const void* from, std::size_t from_bytes, const Where& where);
/// As cp.async.commit_group: what the running thread has begun since the last one is a group.
void commit_async_copies(const Where& where);
/// As cp.async.wait_group: lands the running thread's groups, but for the latest `groups`.
void wait_for_async_copies(unsigned groups, const Where& where);

}  // namespace outeffhop::simt
