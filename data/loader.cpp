// Prefetching: one thread makes batches, the training loop takes them in order.
#include "data/loader.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "kernels/error.h"

namespace outeffhop {

Batch make_batch(const Sampler& sampler, const Objective& objective, std::int64_t B, std::int64_t T, std::int64_t vocab_size,
                 std::uint64_t first_sample) {
  require(B >= 1 && T == sampler.length(), "a batch of shape ({}, {}) from a sampler of rows of {}", B, T, sampler.length());
  Batch batch;
  batch.B = B;
  batch.T = T;
  batch.input_ids.resize(static_cast<std::size_t>(B * T));
  batch.sample_ids.resize(static_cast<std::size_t>(B));
  if (sampler.pads()) batch.key_lengths.resize(static_cast<std::size_t>(B));
  if (sampler.packs()) batch.key_ranges.resize(static_cast<std::size_t>(B * T * 2));
  for (std::int64_t b = 0; b < B; ++b) {
    const std::uint64_t sample = first_sample + static_cast<std::uint64_t>(b);
    batch.sample_ids[static_cast<std::size_t>(b)] = sample;
    sampler.fill(sample, vocab_size, batch, b);
  }
  objective.apply(batch);
  return batch;
}

struct Loader::State {
  const Sampler& sampler;
  const Objective& objective;
  const std::int64_t B, T, vocab_size;
  const std::size_t depth;
  std::uint64_t next_sample;  ///< the thread's own

  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Batch> ready;
  std::exception_ptr error;  ///< what ended the thread; thrown once `ready` is empty
  bool stop = false;
  std::thread thread;

  void run() {
    try {
      for (;;) {
        Batch batch = make_batch(sampler, objective, B, T, vocab_size, next_sample);
        next_sample += static_cast<std::uint64_t>(B);
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return stop || ready.size() < depth; });
        if (stop) return;
        ready.push_back(std::move(batch));
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
    : state_(new State{
          sampler, objective, B, T, vocab_size, std::max<std::size_t>(depth, 1), first_sample, {}, {}, {}, {}, false, {}}) {
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

Batch Loader::next() {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [&] { return !state_->ready.empty() || state_->error; });
  if (state_->ready.empty()) std::rethrow_exception(state_->error);
  Batch batch = std::move(state_->ready.front());
  state_->ready.pop_front();
  state_->changed.notify_all();
  return batch;
}

}  // namespace outeffhop
