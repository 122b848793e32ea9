#include "tests/simt/fiber.h"

#include <boost/context/detail/fcontext.hpp>
#include <boost/context/protected_fixedsize_stack.hpp>

// AddressSanitizer has to be told of each switch of stacks; it also has larger frames.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define OUTEFFHOP_START_SWITCH(...) __sanitizer_start_switch_fiber(__VA_ARGS__)
#define OUTEFFHOP_FINISH_SWITCH(...) __sanitizer_finish_switch_fiber(__VA_ARGS__)
#else
#define OUTEFFHOP_START_SWITCH(...) static_cast<void>(0)
#define OUTEFFHOP_FINISH_SWITCH(...) static_cast<void>(0)
#endif

// Boost's class `fiber` switches once in its constructor, unseen by AddressSanitizer, and goes back to whoever resumed it;
// here a fiber goes on to the next one, which halves the switches. So only the switch itself is Boost's.
namespace outeffhop::simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 512 * 1024;
#else
constexpr std::size_t kStackBytes = 128 * 1024;
#endif

using boost::context::detail::fcontext_t;
using boost::context::detail::transfer_t;

}  // namespace

/// Where execution can be: in a fiber, or outside.
struct FiberPool::Place {
  unsigned number = kOutside;
  fcontext_t context = nullptr;  ///< where it was left
  boost::context::stack_context stack;
  // What AddressSanitizer knows of it.
  [[maybe_unused]] const void* bottom = nullptr;
  [[maybe_unused]] std::size_t size = 0;
  [[maybe_unused]] void* fake_stack = nullptr;
};

struct FiberPool::Entry {
  [[noreturn]] static void run(transfer_t transfer) {
    auto& pool = *static_cast<FiberPool*>(transfer.data);
    const unsigned number = pool.current_->number;
    pool.arrive(transfer.fctx);
    for (;;) pool.switch_to(pool.body_(pool.argument_, number));
  }
};

FiberPool::FiberPool(Body body, void* argument)
    : body_(body), argument_(argument), outside_(std::make_unique<Place>()), current_(outside_.get()) {}

FiberPool::~FiberPool() {
  // None has anything on its stack that wants to be destroyed.
  for (const auto& fiber : fibers_) boost::context::protected_fixedsize_stack(kStackBytes).deallocate(fiber->stack);
}

void FiberPool::grow(unsigned count) {
  while (fibers_.size() < count) {
    auto fiber = std::make_unique<Place>();
    fiber->number = static_cast<unsigned>(fibers_.size());
    fiber->stack = boost::context::protected_fixedsize_stack(kStackBytes).allocate();  // a page behind its end faults
    fiber->size = fiber->stack.size;
    fiber->bottom = static_cast<char*>(fiber->stack.sp) - fiber->size;
    // Stacks begin in different cache lines of their pages, or a warp's frames would fight for the same sets of the cache.
    const std::size_t shift = fiber->number % 32 * 128;
    fiber->context =
        boost::context::detail::make_fcontext(static_cast<char*>(fiber->stack.sp) - shift, fiber->size - shift, Entry::run);
    fibers_.push_back(std::move(fiber));
  }
}

void FiberPool::switch_to(unsigned number) {
  Place* to = number == kOutside ? outside_.get() : fibers_[number].get();
  if (to == current_) return;
  previous_ = current_;
  current_ = to;
  OUTEFFHOP_START_SWITCH(&previous_->fake_stack, to->bottom, to->size);
  arrive(boost::context::detail::jump_fcontext(to->context, this).fctx);
}

void FiberPool::arrive(void* came_from_context) {
  previous_->context = came_from_context;
  OUTEFFHOP_FINISH_SWITCH(current_->fake_stack, &previous_->bottom, &previous_->size);
}

}  // namespace outeffhop::simt
