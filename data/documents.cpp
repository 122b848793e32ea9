#include "data/documents.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "data/mapped_file.h"
#include "kernels/error.h"

namespace outeffhop {
namespace {

constexpr std::size_t kHeaderBytes = 256 * sizeof(std::int32_t);

/// Tokens of a shard looked at in one go while searching for delimiters.
constexpr std::uint64_t kBlockTokens = std::uint64_t{1} << 20;

/// Starts of documents inside one shard, by its delimiters.
std::vector<std::uint64_t> find_delimiters(const Shard& shard, std::int32_t delimiter, bool delimiter_ends, bool* found) {
  std::vector<std::uint64_t> starts = {0};
  std::vector<std::int32_t> block(std::min(kBlockTokens, shard.token_count()));
  for (std::uint64_t begin = 0; begin < shard.token_count(); begin += block.size()) {
    const std::uint64_t count = std::min<std::uint64_t>(block.size(), shard.token_count() - begin);
    shard.read(begin, count, block.data());
    for (std::uint64_t i = 0; i < count; ++i) {
      if (block[i] != delimiter) continue;
      *found = true;
      const std::uint64_t start = begin + i + (delimiter_ends ? 1 : 0);
      if (start > 0 && start < shard.token_count()) starts.push_back(start);
    }
  }
  return starts;
}

/// Whether every shard has an index beside it; some but not all is an error.
bool have_index(const ShardSet& shards) {
  const std::string *with = nullptr, *without = nullptr;
  for (const Shard& shard : shards.shards()) {
    std::error_code unreachable;
    (std::filesystem::exists(document_index_path(shard.path()), unreachable) ? with : without) = &shard.path();
  }
  if (with && without) {
    fail(ErrorKind::data,
         "shard {} has an index of its documents ({}) but shard {} has none: make them again with "
         "scripts/tokenize_corpus.py, or set data.document_delimiter",
         *with, document_index_path(*with), *without);
  }
  return with != nullptr;
}

/// The rule with its delimiter known.
DocumentRule with_delimiter(DocumentRule rule, const ShardSet& shards) {
  if (rule.delimiter >= 0) return rule;
  const ShardMetadata& metadata = shards.metadata();
  if (metadata.cls_id >= 0) return {metadata.cls_id, false};
  rule.delimiter = metadata.eos_id >= 0 ? metadata.eos_id : metadata.bos_id;
  if (rule.delimiter < 0) {
    fail(ErrorKind::usage,
         "nothing tells where documents begin in shard {}: it has no index ({}) and no metadata.json that names a cls_id, "
         "eos_id or bos_id; set data.document_delimiter (50256 in llm.c's GPT-2 shards), or data.sampling to \"stream\" "
         "(eval: --sampling stream)",
         shards.shards().front().path(), document_index_path(shards.shards().front().path()));
  }
  return rule;
}

}  // namespace

std::string document_index_path(const std::string& shard_path) {
  return std::filesystem::path(shard_path).replace_extension(".idx").string();
}

std::vector<std::uint64_t> parse_document_index(std::span<const std::byte> bytes, std::uint64_t token_count,
                                                const std::string& path) {
  if (bytes.size() < kHeaderBytes) {
    fail(ErrorKind::data, "document index {} holds {} bytes, less than the {} of its header: it was cut or is no index",
         path, bytes.size(), kHeaderBytes);
  }
  std::uint32_t words[4];
  std::memcpy(words, bytes.data(), sizeof words);
  if (words[0] != kDocumentIndexMagic) {
    fail(ErrorKind::data,
         "{} is not an index of documents: its first word is {}, expected {} (scripts/tokenize_corpus.py makes them)", path,
         words[0], kDocumentIndexMagic);
  }
  if (words[1] != 1) fail(ErrorKind::data, "document index {} has format version {}, expected 1", path, words[1]);
  const std::uint64_t count = (std::uint64_t{words[3]} << 32) | words[2];
  const std::uint64_t room = bytes.size() - kHeaderBytes;
  if (room % sizeof(std::uint64_t) != 0 || count != room / sizeof(std::uint64_t)) {
    fail(ErrorKind::data,
         "document index {} holds {} bytes but its header promises {} documents of 8 bytes after {} bytes of header: it was "
         "cut, was written to, or is no index",
         path, bytes.size(), count, kHeaderBytes);
  }
  if (count == 0) {
    fail(ErrorKind::data, "document index {} has no documents, but its shard has {} tokens: it belongs to another shard",
         path, token_count);
  }
  std::vector<std::uint64_t> starts;
  starts.reserve(count);
  std::uint64_t previous = 0;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t start = 0;
    const std::uint64_t offset = kHeaderBytes + i * sizeof start;
    std::memcpy(&start, bytes.data() + offset, sizeof start);
    if (i == 0 && start != 0) {
      fail(ErrorKind::data, "document index {} begins its first document at token {}, expected 0", path, start);
    }
    if (start < previous || start > token_count) {
      fail(ErrorKind::data,
           "document index {} begins document {} (byte {}) at token {}, expected {} to {}: it is damaged or belongs to "
           "another shard",
           path, i, offset, start, previous, token_count);
    }
    previous = start;
    // Of documents with the same start only the last is not empty; one at the shard's end is empty too.
    if (start == token_count) continue;
    if (!starts.empty() && starts.back() == start) continue;
    starts.push_back(start);
  }
  return starts;
}

std::vector<std::uint64_t> find_documents(const ShardSet& shards, const DocumentRule& rule) {
  const bool by_index = rule.delimiter < 0 && have_index(shards);
  const DocumentRule known = by_index ? rule : with_delimiter(rule, shards);
  std::vector<std::uint64_t> all;
  std::uint64_t tokens_before = 0;
  bool found = false;
  for (const Shard& shard : shards.shards()) {
    std::vector<std::uint64_t> starts;
    if (by_index) {
      const std::string path = document_index_path(shard.path());
      starts = parse_document_index(MappedFile(path, "document index").bytes(), shard.token_count(), path);
    } else {
      starts = find_delimiters(shard, static_cast<std::int32_t>(known.delimiter), known.delimiter_ends, &found);
    }
    for (const std::uint64_t start : starts) all.push_back(tokens_before + start);
    tokens_before += shard.token_count();
  }
  if (!by_index && !found) {
    fail(ErrorKind::data,
         "the token {} that parts documents occurs nowhere in the {} shards, starting with {}: set data.document_delimiter "
         "to the id that does, or data.sampling to \"stream\" (eval: --sampling stream)",
         known.delimiter, shards.shards().size(), shards.shards().front().path());
  }
  all.push_back(tokens_before);
  return all;
}

}  // namespace outeffhop
