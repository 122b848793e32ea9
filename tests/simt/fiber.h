// Fibers for the executor: a numbered pool, each with a stack of its own that is used again from block to block.
#pragma once

#include <memory>
#include <vector>

namespace outeffhop::simt {

class FiberPool {
 public:
  /// What each fiber does, given `argument` and its number. Must not throw.
  using Body = void (*)(void* argument, unsigned number);
  FiberPool(Body body, void* argument);
  /// No fiber may be inside its body.
  ~FiberPool();

  /// Makes fibers [0, count), those that are there stay.
  void grow(unsigned count);
  /// From outside: lets fiber `number` begin its body, or go on where it yielded, until it yields or the body returns.
  void resume(unsigned number);
  /// From inside fiber `number`: back to whoever resumed it.
  void yield(unsigned number);

 private:
  struct Fiber;
  Body body_;
  void* argument_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
};

}  // namespace outeffhop::simt
