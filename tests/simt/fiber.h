// Fibers for the executor: a numbered pool, each with a stack of its own that is used again from block to block.
#pragma once

#include <functional>
#include <memory>
#include <vector>

namespace outeffhop::simt {

class FiberPool {
 public:
  FiberPool();
  ~FiberPool();

  /// What fiber `number` does at its next resume(). Only for a fiber whose last body has returned. `body` must not throw.
  void start(unsigned number, std::function<void()> body);
  /// From outside: lets fiber `number` run until it yields or its body returns.
  void resume(unsigned number);
  /// From inside fiber `number`: back to whoever resumed it.
  void yield(unsigned number);

 private:
  struct Fiber;
  std::vector<std::unique_ptr<Fiber>> fibers_;
};

}  // namespace outeffhop::simt
