// The inside of the executor.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "tests/simt/executor.h"
#include "tests/simt/fiber.h"
#include "tests/simt/shared_shadow.h"

namespace outeffhop::simt {

struct AsyncCopy {
  std::size_t to = 0, bytes = 0;
  const void* from = nullptr;
  std::size_t from_bytes = 0;
  unsigned group = 0;
  Where where;
};

struct Thread {
  Index3 index;
  unsigned linear = 0;
  Where where;                    ///< of the barrier or collective it waits at
  std::vector<AsyncCopy> copies;  ///< on their way, the oldest first
  unsigned groups = 0;            ///< of copies, committed so far
};

/// Lanes that wait for each other.
struct Gathering {
  Collective collective;
  Where where;
  std::uint32_t arrived = 0;
  Lanes lanes;
};

/// What the lanes of a warp do, as masks. Each of the block's threads is in one of them.
struct Warp {
  std::uint32_t ready = 0, at_barrier = 0, at_collective = 0, done = 0;
  std::vector<Gathering> gatherings;
};

struct Block {
  unsigned at_barrier = 0, votes = 0, last_votes = 0, done = 0;
  Where barrier;  ///< where the first thread came to it
};

class Executor {
 public:
  explicit Executor(const Schedule& schedule) : schedule_(schedule) {}
  void run(const Launch& launch, const std::function<void()>& body);
  [[noreturn]] void violate(const std::string& what, const Where& where) const;
  unsigned block_barrier(bool predicate, const Where& where);
  void warp_collective(const Collective& collective, const void* in, void* out, CollectiveBody compute, const Where& where);
  void order_lanes(std::uint32_t mask) { shadow_.warp_barrier(running_->linear / kWarpSize, mask); }
  void note(Access access, std::size_t offset, std::size_t bytes, const Where& where) {
    if (const auto wrong = shadow_.note(access, offset, bytes, self(where).linear)) violate(*wrong, where);
  }
  void async_copy(const AsyncCopy& copy);
  void commit_async_copies(const Where& where) { ++self(where).groups; }
  void wait_for_async_copies(unsigned groups, const Where& where);
  unsigned lane() const { return running_ ? running_->linear % kWarpSize : 0; }
  std::byte* shared() { return shared_.data(); }
  std::size_t shared_bytes() const { return launch_ ? launch_->shared_bytes : 0; }

  Schedule schedule_;

 private:
  void run_block();
  bool run_warp(unsigned warp);
  void run_thread(Thread& thread);
  unsigned next();
  void become(Thread& thread);
  void wait(std::uint32_t Warp::*at, const Where& where);
  void end_after_failure();
  void cancel_all();
  std::string describe_deadlock() const;
  std::string place(const Thread& thread) const;
  /// The running thread.
  Thread& self(const Where& where) const {
    if (!running_) violate("this is for kernels", where);
    return *running_;
  }
  bool returned(unsigned linear) const {
    return linear >= threads_.size() || (warps_[linear / kWarpSize].done >> linear % kWarpSize & 1u);
  }

  std::recursive_mutex running_a_kernel_;
  const Launch* launch_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  Thread* running_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  FiberPool fibers_{[](void* self, unsigned number) {
                      auto* executor = static_cast<Executor*>(self);
                      executor->run_thread(executor->threads_[number]);
                      return executor->next();
                    },
                    this};
  unsigned turn_first_ = 0;       ///< the warp whose turn it is, by its first thread
  std::uint32_t turn_lanes_ = 0;  ///< its lanes that are still to go on
  Block block_;
  std::vector<std::byte> shared_;
  SharedShadow shadow_;
  bool cancelling_ = false;
  std::exception_ptr failure_;
  std::mt19937_64 random_;
  std::vector<unsigned> warp_order_;
};

/// The one there is.
Executor& executor();

}  // namespace outeffhop::simt
