// "documents" sampling: no sample holds tokens that follow on from another document.
//
// A document longer than T is cut into pieces of T tokens and a tail of 1 to T - 1; a shorter one is a tail. A piece of T
// tokens is a row of its own. Padded, a tail is a row too, filled up with padding on its right. Packed, tails share rows:
// they are visited in an order shuffled by the seed, and each goes into the row with the least room that still holds it
// (best fit; Johnson 1974), or opens a row. Which tails share a row is decided once; epochs shuffle the rows.
//
// Memory: at most 24 bytes a document (start 8, pieces before it 8, tail 4, row 4), and as long as the constructor runs 12
// more. Ten million documents take 240 MB and a few seconds, whatever their length.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/documents.h"
#include "data/sampler.h"

namespace outeffhop {

struct DocumentSettings {
  std::int64_t T = 0;
  std::uint64_t seed = 0;
  bool shuffle =
      true;  ///< false: every epoch has the order of the first (evaluation), which is still a mix of all documents
  bool packing = true;
  std::int32_t pad_id = 0;  ///< what stands in padding; no one looks at it
};

/// Sample k is a pure function of (shards, T, seed, packing, k): epoch k / rows, row permutation(k % rows). Keeps a
/// reference to the shards, which must outlive it. Safe to call from several threads.
class DocumentSampler final : public Sampler {
 public:
  /// Throws what find_documents() throws, and Error(usage) for T < 1.
  DocumentSampler(const ShardSet& shards, const DocumentRule& rule, const DocumentSettings& settings);

  std::uint64_t sample_count() const override { return full_pieces_ + row_count_; }
  std::int64_t length() const override { return settings_.T; }
  std::uint64_t token_count() const override { return starts_.back(); }
  bool pads() const override { return true; }
  bool packs() const override { return settings_.packing; }
  void fill(std::uint64_t k, std::int64_t vocab_size, Batch& batch, std::int64_t b) const override;
  std::string description() const override;
  std::span<const std::uint64_t> document_starts() const override { return starts_; }

  std::uint64_t document_count() const { return starts_.size() - 1; }

 private:
  /// A run of tokens in one document, counted through the shards.
  struct Piece {
    std::uint64_t begin, count;
  };
  std::uint64_t tail_length(std::uint64_t document) const {
    return (starts_[document + 1] - starts_[document]) % static_cast<std::uint64_t>(settings_.T);
  }
  Piece full_piece(std::uint64_t index) const;
  Piece tail_piece(std::uint64_t index) const;
  void pack_tails();
  void read(const Piece& piece, std::int64_t vocab_size, std::int32_t* out) const;

  const ShardSet* shards_;
  DocumentSettings settings_;
  std::vector<std::uint64_t> first_token_;         ///< of each shard, counted through them
  std::vector<std::uint64_t> starts_;              ///< of each document, and the end
  std::vector<std::uint64_t> full_before_;         ///< pieces of T tokens in earlier documents
  std::vector<std::uint32_t> tails_;               ///< documents that have a tail; packed: row by row
  std::vector<std::uint32_t> first_tail_;          ///< packed: of each row, and the end
  std::uint64_t full_pieces_ = 0, row_count_ = 0;  ///< rows of tails come after those of full pieces
};

}  // namespace outeffhop
