// Prefetching: one thread makes batches, the training loop takes them in order.
#include "data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/error.h"

namespace outeffhop {

void make_batch(const Sampler& sampler, const Objective& objective, std::int64_t B, std::int64_t T, std::int64_t vocab_size,
                std::uint64_t first_sample, Batch& batch) {
  require(B >= 1 && T == sampler.length(), "a batch of shape ({}, {}) from a sampler of rows of {}", B, T, sampler.length());
  batch.B = B;
  batch.T = T;
  batch.input_ids.resize(static_cast<std::size_t>(B * T));
  batch.sample_ids.resize(static_cast<std::size_t>(B));
  batch.key_lengths.resize(static_cast<std::size_t>(sampler.pads() ? B : 0));
  batch.key_ranges.resize(static_cast<std::size_t>(sampler.packs() ? B * T * 2 : 0));
  for (std::int64_t b = 0; b < B; ++b) {
    const std::uint64_t sample = first_sample + static_cast<std::uint64_t>(b);
    batch.sample_ids[static_cast<std::size_t>(b)] = sample;
    sampler.fill(sample, vocab_size, batch, b);
  }
  objective.apply(batch);
}

Batch make_batch(const Sampler& sampler, const Objective& objective, std::int64_t B, std::int64_t T, std::int64_t vocab_size,
                 std::uint64_t first_sample) {
  Batch batch;
  make_batch(sampler, objective, B, T, vocab_size, first_sample, batch);
  return batch;
}

struct Loader::State {
  const Sampler& sampler;
  const Objective& objective;
  const std::int64_t B, T, vocab_size;
  std::uint64_t next_sample;  ///< the thread's own

  std::mutex mutex{};
  std::condition_variable changed{};
  std::vector<Batch> ring;  ///< those that wait are ring[first], ring[first + 1], ... modulo its size
  std::size_t first = 0, waiting = 0;
  std::exception_ptr error{};  ///< what ended the thread; thrown once none waits
  bool stop = false;
  std::thread thread{};

  void run() {
    try {
      for (Batch batch;;) {
        make_batch(sampler, objective, B, T, vocab_size, next_sample, batch);
        next_sample += static_cast<std::uint64_t>(B);
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return stop || waiting < ring.size(); });
        if (stop) return;
        std::swap(batch, ring[(first + waiting++) % ring.size()]);
        changed.notify_all();
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      error = std::current_exception();
      changed.notify_all();
    }
  }
};

Loader::Loader(const Sampler& sampler, const Objective& objective, std::int64_t B, std::int64_t T, std::int64_t vocab_size,
               std::uint64_t first_sample, std::size_t depth)
    : state_(new State{.sampler = sampler,
                       .objective = objective,
                       .B = B,
                       .T = T,
                       .vocab_size = vocab_size,
                       .next_sample = first_sample,
                       .ring = std::vector<Batch>(std::max<std::size_t>(depth, 1))}) {
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

Loader::~Loader() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->changed.notify_all();
  state_->thread.join();
}

void Loader::next(Batch& batch) {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [&] { return state_->waiting > 0 || state_->error; });
  if (state_->waiting == 0) std::rethrow_exception(state_->error);
  std::swap(batch, state_->ring[state_->first]);
  state_->first = (state_->first + 1) % state_->ring.size();
  --state_->waiting;
  state_->changed.notify_all();
}

}  // namespace outeffhop
