// Which tokens sample k is: an interface, and "stream" sampling: windows of T tokens at stride T inside each shard; a window
// never crosses two shards, the tail that fills no window is left out. "documents" is in data/document_sampler.h.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/batch.h"
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

/// Rows of T tokens by global sample index, which runs on across epochs. Safe to call from several threads.
class Sampler {
 public:
  virtual ~Sampler() = default;
  virtual std::uint64_t sample_count() const = 0;  ///< an epoch
  virtual std::int64_t length() const = 0;         ///< T, padding included
  virtual std::uint64_t token_count() const = 0;   ///< of an epoch, without padding
  virtual bool pads() const { return false; }      ///< whether it fills Batch::key_lengths
  virtual bool packs() const { return false; }     ///< whether it fills Batch::key_ranges
  /// Writes sample k into row b of a batch whose arrays have their sizes: input_ids, and key_lengths and key_ranges where it
  /// pads and packs. Throws Error(data), naming shard and offset, for a token >= vocab_size.
  virtual void fill(std::uint64_t k, std::int64_t vocab_size, Batch& batch, std::int64_t b) const = 0;
  /// What an epoch is, for people: "4665 windows of 128".
  virtual std::string description() const = 0;
  /// Where documents begin, as find_documents() says; empty where samples do not depend on it.
  virtual std::span<const std::uint64_t> document_starts() const { return {}; }
};

/// Copies tokens [begin, begin + count) of a shard. Throws Error(data), naming shard and position, for a token >=
/// vocab_size.
void read_tokens(const Shard& shard, std::uint64_t begin, std::uint64_t count, std::int64_t vocab_size, std::int32_t* out);

/// Sample k of a run is a pure function of (shards, T, seed, k): epoch k / windows, window permutation(k % windows).
/// Keeps a reference to the shards, which must outlive it. Safe to call from several threads.
class StreamSampler final : public Sampler {
 public:
  /// `shuffle` false reads the windows in order (evaluation). Throws Error(usage) for T < 1, Error(data) when no shard holds
  /// a window.
  StreamSampler(const ShardSet& shards, std::int64_t T, std::uint64_t seed, bool shuffle);

  std::uint64_t sample_count() const override { return window_count_; }
  std::int64_t length() const override { return T_; }
  std::uint64_t token_count() const override { return window_count_ * static_cast<std::uint64_t>(T_); }
  void fill(std::uint64_t k, std::int64_t vocab_size, Batch& batch, std::int64_t b) const override;
  std::string description() const override;

 private:
  const ShardSet* shards_;
  std::int64_t T_;
  std::uint64_t seed_;
  bool shuffle_;
  std::uint64_t window_count_ = 0;
  std::vector<std::uint64_t> first_window_;  ///< of each shard
};

}  // namespace outeffhop
