// Token shards in llm.c's format, memory-mapped.
//
//   version 1: 256 little-endian int32 of header {20240520, 1, token count}, then uint16 tokens
//   version 2: the same header with {20240520, 2, bytes a token (2 or 4), count low word, count high word}, then tokens:
//              for vocabularies over 65,536 or counts over 2^31
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/mapped_file.h"

namespace outeffhop {

constexpr std::int32_t kShardMagic = 20240520;

/// One shard file, mapped read-only. Throws Error(data) naming the file when header and size disagree.
class Shard {
 public:
  explicit Shard(const std::string& path);

  const std::string& path() const { return path_; }
  std::uint64_t token_count() const { return token_count_; }
  int version() const { return version_; }                  ///< of the format: 1 or 2
  int bytes_per_token() const { return bytes_per_token_; }  ///< 2 or 4
  /// Copies tokens [begin, begin + count) as int32; a 4-byte token of 2^31 or more comes out negative. Any thread.
  void read(std::uint64_t begin, std::uint64_t count, std::int32_t* out) const;

 private:
  std::string path_;
  MappedFile file_;
  std::uint64_t token_count_ = 0;
  int version_ = 1;
  int bytes_per_token_ = 2;
};

/// What scripts/tokenize_corpus.py writes beside its shards as metadata.json; llm.c's shards have none.
struct ShardMetadata {
  bool present = false;                   ///< false: there was no file, and nothing below is known
  std::int64_t vocab_size = 0;            ///< 0: unknown
  std::vector<std::int32_t> special_ids;  ///< never masked
  /// Perplexity on the validation split of the training split's unigram distribution (add-one smoothed), over all tokens and
  /// over the tokens that are not special (special ones then left out of the distribution too); 0: unknown. What a model that
  /// knows only frequencies would reach.
  double unigram_perplexity_all = 0.0, unigram_perplexity_non_special = 0.0;
  std::int32_t mask_id = -1, pad_id = -1, cls_id = -1, sep_id = -1, bos_id = -1, eos_id = -1;
};

/// Reads a metadata.json. Keys it does not know are passed over; ids that are null or missing are -1. Throws Error(io) when
/// the file cannot be read, Error(data) naming file and key when its content is not what the key promises.
ShardMetadata read_shard_metadata(const std::string& path);
/// The same from the file's text; `path` begins the messages.
ShardMetadata parse_shard_metadata(std::string_view text, const std::string& path);

/// Paths that a glob pattern matches, sorted bytewise. Throws Error(data) when there are none, Error(io).
std::vector<std::string> matching_shards(const std::string& pattern);

/// The shards of a glob pattern, sorted by path, and the metadata.json beside the first of them if there is one.
class ShardSet {
 public:
  /// `pattern` as in glob(7), with a leading ~ and {a,b} alternatives. Throws Error(data) when nothing matches, or when any
  /// shard or the metadata is damaged.
  explicit ShardSet(const std::string& pattern);

  const std::vector<Shard>& shards() const { return shards_; }
  const ShardMetadata& metadata() const { return metadata_; }
  std::uint64_t token_count() const { return token_count_; }

 private:
  std::vector<Shard> shards_;
  ShardMetadata metadata_;
  std::uint64_t token_count_ = 0;
};

}  // namespace outeffhop
