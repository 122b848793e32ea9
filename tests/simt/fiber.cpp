#include "tests/simt/fiber.h"

#include <boost/context/fiber.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace outeffhop::simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 512 * 1024;
#else
constexpr std::size_t kStackBytes = 128 * 1024;
#endif

/// A protected stack (a page behind its end faults) that remembers where it lies, which AddressSanitizer wants to know.
struct KnownStack {
  boost::context::protected_fixedsize_stack allocator{kStackBytes};
  boost::context::stack_context* known;

  boost::context::stack_context allocate() { return *known = allocator.allocate(); }
  void deallocate(boost::context::stack_context& stack) noexcept { allocator.deallocate(stack); }
};

}  // namespace

struct FiberPool::Fiber {
  std::function<void()> body;
  boost::context::stack_context stack;
  boost::context::fiber inside, outside;
  const void* outside_bottom = nullptr;  ///< of the stack that resumed it
  std::size_t outside_size = 0;

  Fiber() {
    inside = boost::context::fiber(std::allocator_arg, KnownStack{.known = &stack}, [this](boost::context::fiber&& caller) {
      outside = std::move(caller);
      arrived_inside(nullptr);
      for (;;) {
        body();
        leave();
      }
      return std::move(outside);
    });
  }

  // AddressSanitizer has to be told of each switch of stacks.
  void arrived_inside([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &outside_bottom, &outside_size);
#endif
  }
  void enter() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, static_cast<char*>(stack.sp) - stack.size, stack.size);
#endif
    inside = std::move(inside).resume();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }
  void leave() {
    void* fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack, outside_bottom, outside_size);
#endif
    outside = std::move(outside).resume();
    arrived_inside(fake_stack);
  }
};

FiberPool::FiberPool() = default;
FiberPool::~FiberPool() = default;

void FiberPool::start(unsigned number, std::function<void()> body) {
  while (fibers_.size() <= number) fibers_.push_back(std::make_unique<Fiber>());
  fibers_[number]->body = std::move(body);
}

void FiberPool::resume(unsigned number) { fibers_[number]->enter(); }

void FiberPool::yield(unsigned number) { fibers_[number]->leave(); }

}  // namespace outeffhop::simt
