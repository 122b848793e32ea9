// Which tokens sample k is: arithmetic, no stored order.
#include "data/sampler.h"

#include <algorithm>
#include <bit>

#include "kernels/error.h"
#include "kernels/random.h"

namespace outeffhop {
namespace {

/// Luby and Rackoff need four rounds of a random function. On the smallest domains, where a half is one or two bits, a round
/// mixes little, so there are twice as many: a draw is then still some 100 ns against the microseconds of reading a window.
constexpr int kFeistelRounds = 8;

}  // namespace

Permutation::Permutation(std::uint64_t size, std::uint64_t seed, std::uint64_t epoch) : size_(size), epoch_(epoch) {
  require(size > 0 && size <= std::uint64_t{1} << 63, "a permutation of {} elements, expected 1 to 2^63", size);
  half_bits_ = std::max(1, (static_cast<int>(std::bit_width(size - 1)) + 1) / 2);
  const PhiloxKey key = stream_key(seed, kStreamShuffle);
  k0_ = key.k0;
  k1_ = key.k1;
}

std::uint64_t Permutation::operator()(std::uint64_t i) const {
  require(i < size_, "element {} of a permutation of {}", i, size_);
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  // The domain is less than four times the size (or 4 for sizes 1 to 3), so the walk takes a few steps on average. It ends:
  // i itself lies inside, and the walk follows the cycle that i is on.
  do {
    std::uint64_t left = i >> half_bits_, right = i & mask;
    for (std::uint32_t round = 0; round < kFeistelRounds; ++round) {
      const PhiloxBlock block = philox({k0_, k1_}, static_cast<std::uint32_t>(right), round,
                                       static_cast<std::uint32_t>(epoch_), static_cast<std::uint32_t>(epoch_ >> 32));
      const std::uint64_t mixed = left ^ (block.w[0] & mask);
      left = right;
      right = mixed;
    }
    i = (left << half_bits_) | right;
  } while (i >= size_);
  return i;
}

StreamSampler::StreamSampler(const ShardSet& shards, std::int64_t T, std::uint64_t seed, bool shuffle)
    : shards_(&shards), T_(T), seed_(seed), shuffle_(shuffle) {
  if (T < 1) fail(ErrorKind::usage, "a sample of {} tokens was asked for, expected at least 1", T);
  std::uint64_t longest = 0;
  for (const Shard& shard : shards.shards()) {
    first_window_.push_back(window_count_);
    window_count_ += shard.token_count() / static_cast<std::uint64_t>(T);
    longest = std::max(longest, shard.token_count());
  }
  if (window_count_ == 0) {
    fail(ErrorKind::data, "no shard holds one sample of {} tokens: the longest of {}, starting with {}, has {}", T,
         shards.shards().size(), shards.shards().front().path(), longest);
  }
}

void StreamSampler::fill(std::uint64_t k, std::int64_t vocab_size, Batch& batch, std::int64_t b) const {
  std::uint64_t window = k % window_count_;
  if (shuffle_) window = Permutation(window_count_, seed_, k / window_count_)(window);
  // The last shard that starts at or before the window; shards too short for one window start where the next one does.
  const auto after = std::upper_bound(first_window_.begin(), first_window_.end(), window);
  const auto index = static_cast<std::size_t>(after - first_window_.begin()) - 1;
  const auto T = static_cast<std::uint64_t>(T_);
  read_tokens(shards_->shards()[index], (window - first_window_[index]) * T, T, vocab_size, batch.input_ids.data() + b * T_);
}

std::string StreamSampler::description() const { return fmt::format("{} windows of {}", window_count_, T_); }

void read_tokens(const Shard& shard, std::uint64_t begin, std::uint64_t count, std::int64_t vocab_size, std::int32_t* out) {
  shard.read(begin, count, out);
  for (std::uint64_t t = 0; t < count; ++t) {
    const auto token = static_cast<std::uint32_t>(out[t]);
    if (static_cast<std::int64_t>(token) >= vocab_size) {
      fail(ErrorKind::data,
           "shard {} holds token {} at position {}, but the vocabulary has {} ids: the shard was made with another "
           "tokenizer, or vocab_size is too small",
           shard.path(), token, begin + t, vocab_size);
    }
  }
}

}  // namespace outeffhop
