// Batches made ahead of time by a thread of their own.
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

  /// The next batch; waits for it if need be.
  Batch next();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// One batch of samples [first, first + B), made in the caller's thread. T is the sampler's length.
Batch make_batch(const Sampler& sampler, const Objective& objective, std::int64_t B, std::int64_t T, std::int64_t vocab_size,
                 std::uint64_t first_sample);

}  // namespace outeffhop
