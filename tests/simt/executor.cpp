// Who runs when, and what threads wait for.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string_view>
#include <utility>

#include "tests/simt/executor_state.h"

namespace outeffhop::simt {

Index3 current_thread, current_block;
Extent3 current_block_extent, current_grid_extent;

namespace {

constexpr unsigned kMaxThreads = 1024;
// A NaN as fp32 and as bf16, and 1e308 as fp64.
constexpr std::uint16_t kSharedPoison = 0x7fed;

/// Thrown into a fiber whose kernel is over, to unwind it.
struct Cancelled {};

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

std::string text(const Where& where) {
  std::string_view file = where.file_name();
  if (const auto slash = file.rfind('/'); slash != std::string_view::npos) file.remove_prefix(slash + 1);
  return fmt::format("{}:{}", file, where.line());
}

std::vector<unsigned> numbers(std::size_t count) {
  std::vector<unsigned> all(count);
  std::iota(all.begin(), all.end(), 0u);
  return all;
}

std::string text(const Index3& i) { return fmt::format("({}, {}, {})", i.x, i.y, i.z); }

}  // namespace

std::string Executor::place(const Thread& thread) const {
  return fmt::format("kernel {}, block {}, thread {}", launch_->kernel, text(current_block), text(thread.index));
}

void Executor::violate(const std::string& what, const Where& where) const {
  if (!running_) throw Violation(fmt::format("outside of any kernel, {}: {}", text(where), what));
  throw Violation(fmt::format("{}, {}: {}", place(*running_), text(where), what));
}

/// It goes on.
void Executor::become(Thread& thread) {
  running_ = &thread;
  current_thread = thread.index;
}

/// Whose turn it is: the running thread's warp gives each lane that could go on its turn, then the scheduler decides.
unsigned Executor::next() {
  if (turn_lanes_ == 0 || failure_) return FiberPool::kOutside;
  int lane = 0;
  switch (schedule_.order) {
    case Order::forward:
      lane = std::countr_zero(turn_lanes_);
      break;
    case Order::reverse:
      lane = 31 - std::countl_zero(turn_lanes_);
      break;
    case Order::random: {
      std::uint32_t rest = turn_lanes_;
      for (auto skip = random_() % static_cast<unsigned>(std::popcount(rest)); skip > 0; --skip) rest &= rest - 1;
      lane = std::countr_zero(rest);
      break;
    }
  }
  turn_lanes_ &= ~(1u << lane);
  return turn_first_ + static_cast<unsigned>(lane);
}

/// What a fiber does.
void Executor::run_thread(Thread& thread) {
  become(thread);
  if (!cancelling_) {
    try {
      (*body_)();
      if (!thread.copies.empty())
        violate("an asynchronous copy is begun that its thread never waits for", thread.copies.front().where);
    } catch (const Cancelled&) {
    } catch (...) {
      if (!failure_) failure_ = std::current_exception();
    }
  }
  Warp& warp = warps_[thread.linear / kWarpSize];
  const std::uint32_t bit = 1u << thread.linear % kWarpSize;
  warp.ready &= ~bit;
  warp.done |= bit;
  ++block_.done;
}

void Executor::wait(std::uint32_t Warp::*at, const Where& where) {
  Thread& self = *running_;
  Warp& warp = warps_[self.linear / kWarpSize];
  const std::uint32_t bit = 1u << self.linear % kWarpSize;
  warp.ready &= ~bit;
  warp.*at |= bit;
  self.where = where;
  fibers_.switch_to(next());
  become(self);
  if (cancelling_) throw Cancelled{};
}

unsigned Executor::block_barrier(bool predicate, const Where& where) {
  static_cast<void>(self(where));
  if (block_.at_barrier == 0) {
    block_.barrier = where;
  } else if (!same_place(block_.barrier, where)) {
    violate(
        fmt::format("this barrier is reached while other threads of the block wait at the one in {}", text(block_.barrier)),
        where);
  }
  block_.votes += predicate ? 1 : 0;
  if (++block_.at_barrier < threads_.size()) {
    wait(&Warp::at_barrier, where);
    return block_.last_votes;
  }
  block_.last_votes = block_.votes;
  block_.at_barrier = block_.votes = 0;
  for (Warp& warp : warps_) {
    warp.ready |= warp.at_barrier;
    warp.at_barrier = 0;
  }
  shadow_.block_barrier();
  return block_.last_votes;
}

void Executor::warp_collective(const Collective& collective, const void* in, void* out, CollectiveBody compute,
                               const Where& where) {
  const unsigned linear = self(where).linear, lane = linear % kWarpSize, first = linear - lane;
  if (!(collective.mask >> lane & 1u)) {
    violate(
        fmt::format("lane {} calls {} with the mask {:#010x}, which leaves it out", lane, collective.name, collective.mask),
        where);
  }
  Warp& warp = warps_[first / kWarpSize];
  auto mine = warp.gatherings.begin();
  for (; mine != warp.gatherings.end(); ++mine) {
    if (mine->collective.mask == collective.mask && same_place(mine->where, where) &&
        (mine->collective.name == collective.name || std::strcmp(mine->collective.name, collective.name) == 0))
      break;
    // Lanes of it that wait elsewhere may still come, unless they wait for this one.
    if ((mine->collective.mask >> lane & 1u) && (mine->arrived & collective.mask)) {
      violate(fmt::format("{} with the mask {:#010x} is called while lanes of it wait at {} with the mask {:#010x} in {}",
                          collective.name, collective.mask, mine->collective.name, mine->collective.mask, text(mine->where)),
              where);
    }
  }
  if (mine == warp.gatherings.end()) {
    for (unsigned other = 0; other < kWarpSize; ++other) {
      if ((collective.mask >> other & 1u) && returned(first + other)) {
        violate(fmt::format("{} with the mask {:#010x} waits for lane {}, which {}", collective.name, collective.mask, other,
                            first + other < threads_.size() ? "has returned" : "this block does not have"),
                where);
      }
    }
    mine = warp.gatherings.emplace(mine);
    mine->collective = collective;
    mine->where = where;
  } else if (collective.uniform_parameter && mine->collective.parameter != collective.parameter) {
    violate(fmt::format("{} has another operand in lane {} than in others of its mask", collective.name, lane), where);
  }
  mine->arrived |= 1u << lane;
  mine->lanes.brought[lane] = in;
  mine->lanes.taken[lane] = out;
  if (mine->arrived != collective.mask) {
    wait(&Warp::at_collective, where);  // the last lane computes for all
    return;
  }
  compute(mine->collective, mine->lanes, where);
  const std::uint32_t others = collective.mask & ~(1u << lane);
  warp.at_collective &= ~others;
  warp.ready |= others;
  warp.gatherings.erase(mine);
}

std::string Executor::describe_deadlock() const {
  const Thread *waiting = nullptr, *elsewhere = nullptr;
  unsigned at_collective = 0;
  for (const Thread& thread : threads_) {
    const Warp& warp = warps_[thread.linear / kWarpSize];
    const std::uint32_t bit = 1u << thread.linear % kWarpSize;
    if ((warp.at_barrier & bit) && !waiting) waiting = &thread;
    if ((warp.at_collective & bit) && !elsewhere) elsewhere = &thread;
    at_collective += (warp.at_collective & bit) != 0;
  }
  std::string why;
  if (waiting) {
    why = fmt::format("{}: the barrier is reached by {} of {} threads", text(waiting->where), block_.at_barrier,
                      threads_.size());
    if (block_.done) why += fmt::format("; {} have returned", block_.done);
    if (elsewhere) why += fmt::format("; {} wait for lanes of their warp in {}", at_collective, text(elsewhere->where));
  } else {
    waiting = elsewhere;
    const auto& gatherings = warps_[waiting->linear / kWarpSize].gatherings;
    const Gathering& gathering = *std::find_if(gatherings.begin(), gatherings.end(), [&](const Gathering& g) {
      return g.arrived >> waiting->linear % kWarpSize & 1u;
    });
    why = fmt::format("{}: {} with the mask {:#010x} is reached by the lanes {:#010x} only", text(gathering.where),
                      gathering.collective.name, gathering.collective.mask, gathering.arrived);
    if (block_.done) why += fmt::format("; {} threads have returned", block_.done);
  }
  return fmt::format("{}, {}", place(*waiting), why);
}

/// Ends every thread of the block.
void Executor::cancel_all() {
  cancelling_ = true;
  turn_lanes_ = 0;
  for (const Thread& thread : threads_)
    if (!returned(thread.linear)) fibers_.switch_to(thread.linear);
  running_ = nullptr;
  cancelling_ = false;
}

void Executor::end_after_failure() {
  cancel_all();
  std::rethrow_exception(std::exchange(failure_, nullptr));
}

/// Gives each lane that can go on a turn. Whether there was one.
bool Executor::run_warp(unsigned warp) {
  turn_first_ = warp * kWarpSize;
  turn_lanes_ = warps_[warp].ready;
  if (turn_lanes_ == 0) return false;
  fibers_.switch_to(next());
  running_ = nullptr;
  if (failure_) end_after_failure();
  return true;
}

void Executor::run_block() {
  std::fill(reinterpret_cast<std::uint16_t*>(shared_.data()),
            reinterpret_cast<std::uint16_t*>(shared_.data() + shared_.size()), kSharedPoison);
  shadow_.begin_block();
  block_ = {};
  for (Thread& thread : threads_) {
    thread.copies.clear();
    thread.groups = 0;
  }
  std::vector<unsigned>& order = warp_order_;
  for (unsigned warp = 0; warp < warps_.size(); ++warp) {
    const std::size_t lanes = std::min<std::size_t>(kWarpSize, threads_.size() - warp * kWarpSize);
    warps_[warp].ready = static_cast<std::uint32_t>((std::uint64_t{1} << lanes) - 1);
    warps_[warp].at_barrier = warps_[warp].at_collective = warps_[warp].done = 0;
    warps_[warp].gatherings.clear();
  }
  while (block_.done < threads_.size()) {
    bool moved = false;
    if (schedule_.order == Order::random) std::shuffle(order.begin(), order.end(), random_);
    for (const unsigned warp : order) {
      // A warp goes on until it has to wait for others: the most uneven progress. In random order it may be stopped sooner.
      while (run_warp(warp)) {
        moved = true;
        if (schedule_.order == Order::random && random_() % 4 == 0) break;
      }
    }
    if (!moved) {
      failure_ = std::make_exception_ptr(Violation(describe_deadlock()));
      end_after_failure();
    }
  }
}

void Executor::run(const Launch& launch, const std::function<void()>& body) {
  const std::lock_guard lock(running_a_kernel_);
  if (launch_) throw Violation(fmt::format("kernel {} is launched from inside kernel {}", launch.kernel, launch_->kernel));
  const Extent3 &grid = launch.grid, &block = launch.block;
  const std::size_t threads = block.count();
  if (block.x == 0 || block.y == 0 || block.z == 0 || block.x > kMaxThreads || block.y > kMaxThreads || block.z > 64 ||
      threads > kMaxThreads || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535 || launch.shared_bytes > kMaxSharedBytes) {
    throw Violation(
        fmt::format("kernel {} cannot be launched with a grid of ({}, {}, {}), blocks of ({}, {}, {}) and {} bytes of "
                    "shared memory",
                    launch.kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, launch.shared_bytes));
  }
  struct Ended {
    Executor* executor;
    ~Ended() { executor->launch_ = nullptr; }
  } ended{this};
  launch_ = &launch;
  body_ = &body;
  current_block_extent = block;
  current_grid_extent = grid;
  random_.seed(schedule_.seed);
  threads_.resize(threads);
  for (unsigned linear = 0; linear < threads; ++linear) {
    threads_[linear].linear = linear;
    threads_[linear].index = {linear % block.x, linear / block.x % block.y, linear / block.x / block.y};
  }
  warps_.resize((threads + kWarpSize - 1) / kWarpSize);
  warp_order_ = numbers(warps_.size());
  if (schedule_.order == Order::reverse) std::reverse(warp_order_.begin(), warp_order_.end());
  fibers_.grow(static_cast<unsigned>(threads));
  shared_.resize((launch.shared_bytes + 15) / 16 * 16);
  shadow_.begin_launch(launch.shared_bytes, static_cast<unsigned>(threads));

  const std::uint64_t blocks = grid.count();
  std::vector<unsigned> shuffled;
  if (schedule_.order == Order::random) {
    shuffled = numbers(blocks);
    std::shuffle(shuffled.begin(), shuffled.end(), random_);
  }
  for (std::uint64_t turn = 0; turn < blocks; ++turn) {
    const std::uint64_t number = schedule_.order == Order::forward   ? turn
                                 : schedule_.order == Order::reverse ? blocks - 1 - turn
                                                                     : shuffled[turn];
    current_block = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                     static_cast<unsigned>(number / grid.x / grid.y)};
    run_block();
  }
}

namespace {

Schedule schedule_of_environment() {
  const char* chosen = std::getenv("OUTEFFHOP_SIMT_ORDER");
  const std::string_view name = chosen ? chosen : "forward";
  if (name == "forward") return {};
  if (name == "reverse") return {Order::reverse};
  if (name == "random") return {Order::random};
  if (name.starts_with("random:")) return {Order::random, std::strtoull(chosen + 7, nullptr, 10)};
  throw std::invalid_argument(
      fmt::format("OUTEFFHOP_SIMT_ORDER is \"{}\"; it may be forward, reverse, random or random:SEED", name));
}

}  // namespace

Executor& executor() {
  static Executor instance(schedule_of_environment());
  return instance;
}

void set_schedule(const Schedule& schedule) { executor().schedule_ = schedule; }
Schedule schedule() { return executor().schedule_; }
void run(const Launch& launch, const std::function<void()>& thread) { executor().run(launch, thread); }
void violate(const std::string& what, const Where& where) { executor().violate(what, where); }
unsigned block_barrier(bool predicate, const Where& where) { return executor().block_barrier(predicate, where); }
unsigned lane() { return executor().lane(); }

void warp_collective(const Collective& collective, const void* in, void* out, CollectiveBody compute, const Where& where) {
  executor().warp_collective(collective, in, out, compute, where);
}

void warp_barrier(std::uint32_t mask, const Where& where) {
  const auto order = [](const Collective& collective, const Lanes&, const Where&) {
    executor().order_lanes(collective.mask);
  };
  executor().warp_collective({"__syncwarp", mask}, nullptr, nullptr, order, where);
}

}  // namespace outeffhop::simt
