// Batches made ahead of time by a thread of their own, in memory that goes round between it and the training loop.
#pragma once

#include <cstdint>
#include <memory>

#include "data/batch.h"
#include "data/objective.h"
#include "data/sampler.h"

namespace outeffhop {

/// Batch i of the loader holds samples [first_sample + i B, first_sample + (i + 1) B). An error met while preparing a batch
/// is thrown by the next() that would have returned it, and by every later one. Destruction stops the thread. Sampler, its
/// shards and objective must outlive the loader. At most `depth` batches (at least one) wait at a time.
class Loader {
 public:
  Loader(const Sampler& sampler, const Objective& objective, std::int64_t B, std::int64_t T, std::int64_t vocab_size,
         std::uint64_t first_sample, std::size_t depth = 4);
  ~Loader();

  /// Exchanges `batch` for the next one; waits for it if need be. What `batch` held is overwritten with a later batch: once
  /// every batch that goes round has been filled, neither side allocates memory.
  void next(Batch& batch);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Fills `batch` with samples [first, first + B) in the caller's thread, reusing its memory. T is the sampler's length.
void make_batch(const Sampler& sampler, const Objective& objective, std::int64_t B, std::int64_t T, std::int64_t vocab_size,
                std::uint64_t first_sample, Batch& batch);
/// The same in a batch of its own.
Batch make_batch(const Sampler& sampler, const Objective& objective, std::int64_t B, std::int64_t T, std::int64_t vocab_size,
                 std::uint64_t first_sample);

}  // namespace outeffhop
