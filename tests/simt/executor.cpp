#include "tests/simt/executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/simt/fiber.h"
#include "tests/simt/shared_shadow.h"

namespace outeffhop::simt {

Index3 current_thread, current_block;
Extent3 current_block_extent, current_grid_extent;

namespace {

constexpr unsigned kMaxThreads = 1024;
// A NaN as fp32 and as bf16, and 1e308 as fp64.
constexpr std::uint16_t kSharedPoison = 0x7fed;

/// Thrown into a fiber whose kernel is over, to unwind it.
struct Cancelled {};

struct Thread {
  enum class State { ready, at_block_barrier, at_collective, done };
  State state = State::done;
  Index3 index;
  unsigned linear = 0;
  std::optional<Where> where;  ///< of the barrier or collective it waits at
  Epoch epoch;
};

/// Lanes that wait for each other.
struct Gathering {
  Collective collective;
  Where where;
  std::uint32_t arrived = 0;
  LaneValues brought, taken;
};

struct Block {
  bool predicate_seen = false;
  unsigned at_barrier = 0, votes = 0, last_votes = 0;
  std::optional<Where> barrier;  ///< where the first thread came to it
};

class Executor {
 public:
  explicit Executor(const Schedule& schedule) : schedule_(schedule) {}
  void run(const Launch& launch, const std::function<void()>& body);
  [[noreturn]] void violate(const std::string& what, const Where& where);
  unsigned block_barrier(bool predicate, const Where& where);
  void warp_collective(const Collective& collective, const void* in, std::size_t in_bytes, void* out, std::size_t out_bytes,
                       CollectiveBody compute, const Where& where);
  unsigned lane() const { return running_->linear % kWarpSize; }
  const Thread& running() const { return *running_; }
  SharedShadow& shadow() { return shadow_; }
  std::byte* shared() { return shared_.data(); }
  std::size_t shared_bytes() const { return launch_ ? launch_->shared_bytes : 0; }
  void order_lanes(std::uint32_t mask);

  Schedule schedule_;

 private:
  void run_block(const std::function<void()>& body);
  void resume(Thread& thread);
  void wait(Thread::State state, const Where& where);
  void cancel_all();
  std::vector<unsigned> turns(std::vector<unsigned> ascending);
  std::string describe_deadlock() const;
  std::string place(const Thread& thread) const;
  bool returned(unsigned linear) const { return linear >= threads_.size() || threads_[linear].state == Thread::State::done; }

  const Launch* launch_ = nullptr;
  Thread* running_ = nullptr;
  std::vector<Thread> threads_;
  FiberPool fibers_;
  std::vector<std::vector<std::unique_ptr<Gathering>>> gatherings_;  ///< a warp
  Block block_;
  std::vector<std::byte> shared_;
  SharedShadow shadow_;
  bool cancelling_ = false;
  std::exception_ptr failure_;
  std::mt19937_64 random_;
};

std::string text(const Where& where) {
  std::string_view file = where.file_name();
  if (const auto slash = file.rfind('/'); slash != std::string_view::npos) file.remove_prefix(slash + 1);
  return fmt::format("{}:{}", file, where.line());
}

std::string text(const Index3& i) { return fmt::format("({}, {}, {})", i.x, i.y, i.z); }

std::string Executor::place(const Thread& thread) const {
  return fmt::format("kernel {}, block {}, thread {}", launch_->kernel, text(current_block), text(thread.index));
}

void Executor::violate(const std::string& what, const Where& where) {
  throw Violation(fmt::format("{}, {}: {}", place(*running_), text(where), what));
}

std::vector<unsigned> Executor::turns(std::vector<unsigned> order) {
  if (schedule_.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (schedule_.order == Order::random) std::shuffle(order.begin(), order.end(), random_);
  return order;
}

std::vector<unsigned> ascending(std::size_t count) {
  std::vector<unsigned> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0u);
  return numbers;
}

void Executor::resume(Thread& thread) {
  running_ = &thread;
  current_thread = thread.index;
  fibers_.resume(thread.linear);
  running_ = nullptr;
}

void Executor::wait(Thread::State state, const Where& where) {
  Thread& self = *running_;
  self.state = state;
  self.where = where;
  fibers_.yield(self.linear);
  if (cancelling_) throw Cancelled{};
}

unsigned Executor::block_barrier(bool predicate, const Where& where) {
  if (!block_.barrier) {
    block_.barrier = where;
  } else if (block_.barrier->line() != where.line() || std::strcmp(block_.barrier->file_name(), where.file_name()) != 0) {
    violate(
        fmt::format("this barrier is reached while other threads of the block wait at the one in {}", text(*block_.barrier)),
        where);
  }
  block_.votes += predicate ? 1 : 0;
  if (++block_.at_barrier < threads_.size()) {
    wait(Thread::State::at_block_barrier, where);
    return block_.last_votes;
  }
  block_.last_votes = block_.votes;
  block_.at_barrier = block_.votes = 0;
  block_.barrier.reset();
  for (Thread& thread : threads_) {
    ++thread.epoch.block;
    if (thread.state == Thread::State::at_block_barrier) thread.state = Thread::State::ready;
  }
  return block_.last_votes;
}

void Executor::warp_collective(const Collective& collective, const void* in, std::size_t in_bytes, void* out,
                               std::size_t out_bytes, CollectiveBody compute, const Where& where) {
  Thread& self = *running_;
  const unsigned lane = self.linear % kWarpSize, warp = self.linear / kWarpSize;
  if (!(collective.mask >> lane & 1u)) {
    violate(
        fmt::format("lane {} calls {} with the mask {:#010x}, which leaves it out", lane, collective.name, collective.mask),
        where);
  }
  auto& pending = gatherings_[warp];
  Gathering* mine = nullptr;
  for (auto& gathering : pending) {
    if (!(gathering->collective.mask & collective.mask)) continue;
    const bool same =
        gathering->collective.mask == collective.mask && std::strcmp(gathering->collective.name, collective.name) == 0 &&
        gathering->where.line() == where.line() && std::strcmp(gathering->where.file_name(), where.file_name()) == 0;
    if (!same) {
      violate(fmt::format("{} with the mask {:#010x} is called while lanes of it wait at {} with the mask {:#010x} in {}",
                          collective.name, collective.mask, gathering->collective.name, gathering->collective.mask,
                          text(gathering->where)),
              where);
    }
    if (collective.uniform_parameter && gathering->collective.parameter != collective.parameter)
      violate(fmt::format("{} has another operand in lane {} than in others of its mask", collective.name, lane), where);
    mine = gathering.get();
  }
  if (!mine) {
    for (unsigned other = 0; other < kWarpSize; ++other) {
      if ((collective.mask >> other & 1u) && returned(warp * kWarpSize + other)) {
        violate(fmt::format("{} with the mask {:#010x} waits for lane {}, which {}", collective.name, collective.mask, other,
                            warp * kWarpSize + other < threads_.size() ? "has returned" : "this block does not have"),
                where);
      }
    }
    pending.push_back(std::make_unique<Gathering>());
    mine = pending.back().get();
    mine->collective = collective;
    mine->where = where;
  }
  mine->arrived |= 1u << lane;
  if (in_bytes) std::memcpy(mine->brought.bytes[lane], in, in_bytes);
  if (mine->arrived != collective.mask) {
    wait(Thread::State::at_collective, where);
    // The last lane has computed for all and left the result; whoever takes last clears away.
  } else {
    if (compute) compute(mine->collective, mine->brought, mine->taken, where);
    for (unsigned other = 0; other < kWarpSize; ++other)
      if ((collective.mask >> other & 1u) && other != lane) threads_[warp * kWarpSize + other].state = Thread::State::ready;
    mine->collective.mask = 0;  // complete: no longer waited at
  }
  if (out_bytes) std::memcpy(out, mine->taken.bytes[lane], out_bytes);
  mine->arrived &= ~(1u << lane);
  if (!mine->arrived) std::erase_if(pending, [&](const auto& gathering) { return gathering.get() == mine; });
}

void Executor::order_lanes(std::uint32_t mask) {
  const unsigned first = running_->linear / kWarpSize * kWarpSize;
  std::uint32_t latest = 0;
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1u) latest = std::max(latest, threads_[first + lane].epoch.warp);
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1u) threads_[first + lane].epoch.warp = latest + 1;
}

std::string Executor::describe_deadlock() const {
  unsigned done = 0, at_barrier = 0, at_collective = 0;
  const Thread *waiting = nullptr, *elsewhere = nullptr;
  for (const Thread& thread : threads_) {
    done += thread.state == Thread::State::done;
    at_barrier += thread.state == Thread::State::at_block_barrier;
    at_collective += thread.state == Thread::State::at_collective;
    if (thread.state == Thread::State::at_block_barrier && !waiting) waiting = &thread;
    if (thread.state == Thread::State::at_collective && !elsewhere) elsewhere = &thread;
  }
  std::string why;
  if (waiting) {
    why = fmt::format("{}: the barrier is reached by {} of {} threads", text(*waiting->where), at_barrier, threads_.size());
    if (done) why += fmt::format("; {} have returned", done);
    if (at_collective) why += fmt::format("; {} wait for lanes of their warp in {}", at_collective, text(*elsewhere->where));
  } else {
    waiting = elsewhere;
    const unsigned warp = waiting->linear / kWarpSize;
    const Gathering& gathering = *gatherings_[warp].front();
    why = fmt::format("{}: {} with the mask {:#010x} is reached by the lanes {:#010x} only", text(gathering.where),
                      gathering.collective.name, gathering.collective.mask, gathering.arrived);
    if (done) why += fmt::format("; {} threads have returned", done);
  }
  return fmt::format("{}, {}", place(*waiting), why);
}

void Executor::cancel_all() {
  cancelling_ = true;
  for (Thread& thread : threads_)
    if (thread.state != Thread::State::done) resume(thread);
  cancelling_ = false;
}

void Executor::run_block(const std::function<void()>& body) {
  std::fill(reinterpret_cast<std::uint16_t*>(shared_.data()),
            reinterpret_cast<std::uint16_t*>(shared_.data() + shared_.size() / 2 * 2), kSharedPoison);
  shadow_.begin_block(launch_->shared_bytes);
  for (auto& gatherings : gatherings_) gatherings.clear();
  block_ = {};
  for (Thread& thread : threads_) {
    thread.state = Thread::State::ready;
    thread.epoch = {};
    fibers_.start(thread.linear, [this, &thread, &body] {
      if (!cancelling_) {
        try {
          body();
        } catch (const Cancelled&) {
        } catch (const std::exception&) {
          if (!failure_) failure_ = std::current_exception();
        }
      }
      thread.state = Thread::State::done;
    });
  }
  std::vector<unsigned> order = turns(ascending(threads_.size()));
  for (std::size_t done = 0; done < threads_.size();) {
    bool moved = false;
    done = 0;
    if (schedule_.order == Order::random) std::shuffle(order.begin(), order.end(), random_);
    for (const unsigned number : order) {
      Thread& thread = threads_[number];
      if (thread.state == Thread::State::ready) {
        resume(thread);
        moved = true;
        if (failure_) {
          cancel_all();
          std::rethrow_exception(std::exchange(failure_, nullptr));
        }
      }
      done += thread.state == Thread::State::done;
    }
    if (!moved && done < threads_.size()) {
      const Violation deadlock(describe_deadlock());
      cancel_all();
      throw deadlock;
    }
  }
}

void Executor::run(const Launch& launch, const std::function<void()>& body) {
  if (launch_) throw Violation(fmt::format("kernel {} is launched from inside kernel {}", launch.kernel, launch_->kernel));
  const std::uint64_t threads = launch.block.count();
  if (threads == 0 || threads > kMaxThreads || launch.block.z > 64 || launch.grid.count() == 0 ||
      launch.grid.x > 0x7fffffffu || launch.grid.y > 65535 || launch.grid.z > 65535 ||
      launch.shared_bytes > kMaxSharedBytes) {
    throw Violation(
        fmt::format("kernel {} cannot be launched with a grid of ({}, {}, {}), blocks of ({}, {}, {}) and {} bytes of "
                    "shared memory",
                    launch.kernel, launch.grid.x, launch.grid.y, launch.grid.z, launch.block.x, launch.block.y,
                    launch.block.z, launch.shared_bytes));
  }
  launch_ = &launch;
  current_block_extent = launch.block;
  current_grid_extent = launch.grid;
  random_.seed(schedule_.seed);
  threads_.assign(threads, {});
  for (unsigned linear = 0; linear < threads; ++linear) {
    threads_[linear].linear = linear;
    threads_[linear].index = {linear % launch.block.x, linear / launch.block.x % launch.block.y,
                              linear / launch.block.x / launch.block.y};
  }
  gatherings_.resize((threads + kWarpSize - 1) / kWarpSize);
  shared_.resize((launch.shared_bytes + 15) / 16 * 16);
  struct Ended {
    Executor* executor;
    ~Ended() { executor->launch_ = nullptr; }
  } ended{this};
  for (const unsigned number : turns(ascending(launch.grid.count()))) {
    current_block = {number % launch.grid.x, number / launch.grid.x % launch.grid.y, number / launch.grid.x / launch.grid.y};
    run_block(body);
  }
}

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

Executor& executor() {
  static Executor instance(schedule_of_environment());
  return instance;
}

}  // namespace

void set_schedule(const Schedule& schedule) { executor().schedule_ = schedule; }
Schedule schedule() { return executor().schedule_; }
void run(const Launch& launch, const std::function<void()>& thread) { executor().run(launch, thread); }
void violate(const std::string& what, const Where& where) { executor().violate(what, where); }
unsigned block_barrier(bool predicate, const Where& where) { return executor().block_barrier(predicate, where); }
unsigned lane() { return executor().lane(); }
std::byte* shared_memory() { return executor().shared(); }
std::size_t shared_memory_bytes() { return executor().shared_bytes(); }

void warp_collective(const Collective& collective, const void* in, std::size_t in_bytes, void* out, std::size_t out_bytes,
                     CollectiveBody compute, const Where& where) {
  executor().warp_collective(collective, in, in_bytes, out, out_bytes, compute, where);
}

void warp_barrier(std::uint32_t mask, const Where& where) {
  const auto order = [](const Collective& collective, const LaneValues&, LaneValues&, const Where&) {
    executor().order_lanes(collective.mask);
  };
  executor().warp_collective({"__syncwarp", mask}, nullptr, 0, nullptr, 0, order, where);
}

void note_shared_read(std::size_t offset, std::size_t bytes, const Where& where) {
  const Thread& self = executor().running();
  if (const auto wrong = executor().shadow().read(offset, bytes, self.linear, self.epoch)) violate(*wrong, where);
}

void note_shared_write(std::size_t offset, std::size_t bytes, const Where& where) {
  const Thread& self = executor().running();
  if (const auto wrong = executor().shadow().write(offset, bytes, self.linear, self.epoch)) violate(*wrong, where);
}

void note_shared_pending(std::size_t offset, std::size_t bytes, const Where& where) {
  const Thread& self = executor().running();
  if (const auto wrong = executor().shadow().pend(offset, bytes, self.linear, self.epoch)) violate(*wrong, where);
}

std::size_t shared_offset(const void* pointer, std::size_t bytes, const Where& where) {
  const auto begin = reinterpret_cast<std::uintptr_t>(shared_memory()), at = reinterpret_cast<std::uintptr_t>(pointer);
  if (at < begin || at + bytes > begin + shared_memory_bytes()) {
    violate(fmt::format("an access to {} bytes of shared memory lies outside of the block's {} bytes", bytes,
                        shared_memory_bytes()),
            where);
  }
  return at - begin;
}

}  // namespace outeffhop::simt
