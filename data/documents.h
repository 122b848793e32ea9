// Where the documents of token shards begin: from the index NAME.idx beside each shard NAME.bin, or from a delimiter token.
// Either way documents tile a shard: each ends where the next begins, the last one with its shard.
//
//   NAME.idx   256 little-endian int32 of header {20240521, 1, document count low word, high word, 0, ...}, then one
//              little-endian uint64 a document: the position of its first token in the shard, ascending from 0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/shards.h"

namespace outeffhop {

constexpr std::int32_t kDocumentIndexMagic = 20240521;

/// The starts in an index held in memory, for a shard of `token_count` (at least 1) tokens. Empty documents (two equal
/// starts, or one at the shard's end) are left out, so the result ascends strictly from 0 and has at least one element.
/// `path` names the file in messages. Throws Error(data) naming the first thing wrong: magic, version, size against the
/// header, a start that goes back or lies beyond the shard, tokens before the first document.
std::vector<std::uint64_t> parse_document_index(std::span<const std::byte> bytes, std::uint64_t token_count,
                                                const std::string& path);

/// The index that belongs to a shard: its path with .idx in place of the extension.
std::string document_index_path(const std::string& shard_path);

/// What a user says about documents.
struct DocumentRule {
  /// A token that parts documents. Negative: the index beside the shards tells, where every shard has one; where none has,
  /// the delimiter is the metadata's cls_id, else its eos_id, else its bos_id.
  std::int64_t delimiter = -1;
  /// False: a document begins at each delimiter, which is its first token (GPT-2's <|endoftext|> in llm.c's shards, BERT's
  /// [CLS]); what stands before a shard's first delimiter is a document too. True: a document ends with the delimiter.
  /// cls_id always begins a document.
  bool delimiter_ends = false;
};

/// Positions of the first token of every document, counted through the shards in their order, and last the number of all
/// tokens: document d is [starts[d], starts[d + 1]), is not empty and lies inside one shard. 8 bytes a document. With a
/// delimiter every token is read once (about a second for a billion). Throws Error(data) for a damaged index, a delimiter
/// that occurs nowhere, shards some of which have an index and some not; Error(usage) when there is nothing to tell
/// documents apart by.
std::vector<std::uint64_t> find_documents(const ShardSet& shards, const DocumentRule& rule);

}  // namespace outeffhop
