// "stream" sampling: windows of T tokens at stride T inside each shard; a window never crosses two shards, the tail that
// fills no window is left out.
#pragma once

#include <cstdint>
#include <vector>

#include "data/shards.h"

namespace outeffhop {

/// A pseudo-random permutation of [0, size) that needs no array: a balanced Feistel network of Philox rounds over the next
/// power of four, walked until it lands inside (Luby, Rackoff 1988; cycle walking: Black, Rogaway 2002).
/// FROZEN: rounds, counter layout and the domain's size define the data order of every past run.
class Permutation {
 public:
  Permutation(std::uint64_t size, std::uint64_t seed, std::uint64_t epoch);
  std::uint64_t operator()(std::uint64_t i) const;

 private:
  std::uint64_t size_ = 1;
  int half_bits_ = 1;
  std::uint32_t k0_ = 0, k1_ = 0;
  std::uint64_t epoch_ = 0;
};

/// Sample k of a run is a pure function of (shards, T, seed, k): epoch k / windows, window permutation(k % windows).
/// Keeps a reference to the shards, which must outlive it. Safe to call from several threads.
class StreamSampler {
 public:
  /// `shuffle` false reads the windows in order (evaluation). Throws Error(usage) for T < 1, Error(data) when no shard holds
  /// a window.
  StreamSampler(const ShardSet& shards, std::int64_t T, std::uint64_t seed, bool shuffle);

  std::uint64_t window_count() const { return window_count_; }
  std::int64_t window_length() const { return T_; }
  /// Writes the T tokens of global sample k to out. Throws Error(data), naming shard and offset, for a token >= vocab_size.
  void sample(std::uint64_t k, std::int64_t vocab_size, std::int32_t* out) const;

 private:
  const ShardSet* shards_;
  std::int64_t T_;
  std::uint64_t seed_;
  bool shuffle_;
  std::uint64_t window_count_ = 0;
  std::vector<std::uint64_t> first_window_;  ///< of each shard
};

}  // namespace outeffhop
