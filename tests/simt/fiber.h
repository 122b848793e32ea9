// Fibers for the executor: a numbered pool, each with a stack of its own that is used again from block to block.
#pragma once

#include <memory>
#include <vector>

namespace outeffhop::simt {

class FiberPool {
 public:
  /// Whoever is in no fiber.
  static constexpr unsigned kOutside = ~0u;
  /// What each fiber does, over and over, given `argument` and its number; returns which goes on when it is done. Must not
  /// throw.
  using Body = unsigned (*)(void* argument, unsigned number);
  FiberPool(Body body, void* argument);
  /// No fiber may be inside its body.
  ~FiberPool();

  /// Makes fibers [0, count); those that are there stay.
  void grow(unsigned count);
  /// Lets fiber `number`, or whoever is outside, go on. Returns when somebody lets the caller go on.
  void switch_to(unsigned number);

 private:
  struct Place;
  struct Entry;
  void arrive(void* came_from_context);

  Body body_;
  void* argument_;
  std::vector<std::unique_ptr<Place>> fibers_;
  std::unique_ptr<Place> outside_;
  Place *current_, *previous_ = nullptr;
};

}  // namespace outeffhop::simt
