#include "tests/simt/fiber.h"

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <utility>

// AddressSanitizer has to be told of each switch of stacks; it also has larger frames.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define OUTEFFHOP_START_SWITCH(...) __sanitizer_start_switch_fiber(__VA_ARGS__)
#define OUTEFFHOP_FINISH_SWITCH(...) __sanitizer_finish_switch_fiber(__VA_ARGS__)
#else
#define OUTEFFHOP_START_SWITCH(...) static_cast<void>(0)
#define OUTEFFHOP_FINISH_SWITCH(...) static_cast<void>(0)
#endif

namespace outeffhop::simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 512 * 1024;
#else
constexpr std::size_t kStackBytes = 128 * 1024;
#endif

/// A protected stack (a page behind its end faults) that tells where it lies.
struct KnownStack {
  boost::context::protected_fixedsize_stack allocator{kStackBytes};
  boost::context::stack_context* known;

  boost::context::stack_context allocate() { return *known = allocator.allocate(); }
  void deallocate(boost::context::stack_context& stack) noexcept { allocator.deallocate(stack); }
};

}  // namespace

struct FiberPool::Fiber {
  boost::context::stack_context stack;
  boost::context::fiber inside, outside;
  bool ending = false;
  [[maybe_unused]] void* fake_stack_outside = nullptr;    ///< of whoever resumed it, as AddressSanitizer calls it
  [[maybe_unused]] const void* outside_bottom = nullptr;  ///< of the stack of whoever resumed it
  [[maybe_unused]] std::size_t outside_size = 0;

  Fiber(Body body, void* argument, unsigned number) {
    const auto loop = [=, this](boost::context::fiber&& caller) {
      OUTEFFHOP_FINISH_SWITCH(nullptr, &outside_bottom, &outside_size);
      outside = std::move(caller);
      while (!ending) {
        body(argument, number);
        leave();
      }
      OUTEFFHOP_START_SWITCH(nullptr, outside_bottom, outside_size);  // null: this stack ends
      return std::move(outside);
    };
    inside = boost::context::fiber(std::allocator_arg, KnownStack{.known = &stack}, loop);
  }
  ~Fiber() {
    // Boost would end it by an exception, of which AddressSanitizer would know nothing.
    ending = true;
    enter();
  }

  void enter() {
    OUTEFFHOP_START_SWITCH(&fake_stack_outside, static_cast<char*>(stack.sp) - stack.size, stack.size);
    inside = std::move(inside).resume();
    OUTEFFHOP_FINISH_SWITCH(fake_stack_outside, nullptr, nullptr);
  }
  void leave() {
    [[maybe_unused]] void* fake_stack = nullptr;
    OUTEFFHOP_START_SWITCH(&fake_stack, outside_bottom, outside_size);
    outside = std::move(outside).resume();
    OUTEFFHOP_FINISH_SWITCH(fake_stack, &outside_bottom, &outside_size);
  }
};

FiberPool::FiberPool(Body body, void* argument) : body_(body), argument_(argument) {}
FiberPool::~FiberPool() = default;

void FiberPool::grow(unsigned count) {
  while (fibers_.size() < count)
    fibers_.push_back(std::make_unique<Fiber>(body_, argument_, static_cast<unsigned>(fibers_.size())));
}

void FiberPool::resume(unsigned number) { fibers_[number]->enter(); }

void FiberPool::yield(unsigned number) { fibers_[number]->leave(); }

}  // namespace outeffhop::simt
