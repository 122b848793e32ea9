// inspect: token shards and the metadata beside them.
#include <algorithm>
#include <fstream>
#include <limits>
#include <vector>

#include "data/shards.h"
#include "kernels/error.h"
#include "train/files.h"
#include "train/inspect.h"

namespace outeffhop {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr std::size_t kFirstTokens = 16;

/// Facts of one shard from all of its tokens. An id that `vocab_size` (0: unknown) does not have is a problem: its place
/// too.
Json shard_facts(const std::string& path, std::int64_t vocab_size, Inspection& found) {
  const Shard shard(path);
  constexpr std::uint64_t kBlock = 1 << 20;
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(std::min(kBlock, shard.token_count())));
  std::vector<std::int64_t> first;
  std::int64_t smallest = std::numeric_limits<std::int64_t>::max(), largest = -1;
  std::uint64_t beyond = 0, first_beyond = 0;
  std::int64_t beyond_id = 0;
  for (std::uint64_t begin = 0; begin < shard.token_count(); begin += kBlock) {
    const std::uint64_t count = std::min(kBlock, shard.token_count() - begin);
    shard.read(begin, count, tokens.data());
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::int64_t id = static_cast<std::uint32_t>(tokens[static_cast<std::size_t>(i)]);
      if (begin + i < kFirstTokens) first.push_back(id);
      smallest = std::min(smallest, id);
      largest = std::max(largest, id);
      if (vocab_size == 0 || id < vocab_size) continue;
      if (beyond++ == 0) {
        first_beyond = begin + i;
        beyond_id = id;
      }
    }
  }
  if (beyond > 0) {
    found.problem(
        static_cast<int>(ErrorKind::data),
        fmt::format("shard {} holds {} tokens beyond the vocabulary of {} that its metadata.json states, the first "
                    "of them {} at position {}",
                    path, beyond, vocab_size, beyond_id, first_beyond));
  }
  return {{"shard", path},
          {"version", shard.version()},
          {"tokens", shard.token_count()},
          {"bytes_per_token", shard.bytes_per_token()},
          {"smallest_id", smallest},
          {"largest_id", largest},
          {"state", beyond > 0 ? "ids beyond the vocabulary" : "sound"},
          {"first_tokens", first}};
}

/// What can still be said of a shard that cannot be opened as one.
Json damaged_facts(const std::string& path) {
  std::int32_t words[5] = {};
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(words), sizeof words);
  Json facts = {{"shard", path}};
  std::error_code error;
  const std::uintmax_t bytes = fs::file_size(path, error);
  if (!error) facts["file_bytes"] = bytes;
  if (file && words[0] == kShardMagic) {
    facts["version"] = words[1];
    if (words[1] == 1) facts["tokens_promised"] = words[2];
    if (words[1] == 2) {
      facts["tokens_promised"] =
          (std::uint64_t{static_cast<std::uint32_t>(words[4])} << 32) | static_cast<std::uint32_t>(words[3]);
    }
  }
  facts["state"] = "damaged";
  return facts;
}

Json metadata_facts(const ShardMetadata& metadata) {
  const auto id = [](std::int32_t value) { return value >= 0 ? Json(value) : Json(nullptr); };
  const auto known = [](auto value) { return value > 0 ? Json(value) : Json(nullptr); };
  return {{"vocab_size", known(metadata.vocab_size)},
          {"special_ids", metadata.special_ids},
          {"mask_id", id(metadata.mask_id)},
          {"pad_id", id(metadata.pad_id)},
          {"cls_id", id(metadata.cls_id)},
          {"sep_id", id(metadata.sep_id)},
          {"bos_id", id(metadata.bos_id)},
          {"eos_id", id(metadata.eos_id)},
          {"unigram_perplexity", known(metadata.unigram_perplexity_all)},
          {"unigram_perplexity_non_special", known(metadata.unigram_perplexity_non_special)}};
}

}  // namespace

void inspect_shards(const std::string& pattern, Inspection& found) {
  // A name with a glob's special characters is first of all the name of a file.
  const std::vector<std::string> paths =
      fs::is_regular_file(status_of(pattern)) ? std::vector<std::string>{pattern} : matching_shards(pattern);
  found.facts["kind"] = paths.size() == 1 ? "token shard" : "token shards";
  const fs::path file = fs::path(paths.front()).parent_path() / "metadata.json";
  ShardMetadata metadata;
  if (fs::exists(status_of(file))) found.attempt([&] { metadata = read_shard_metadata(file.string()); });

  std::uint64_t tokens = 0;
  Json shards = Json::array(), first = nullptr;
  for (const std::string& path : paths) {
    const bool sound = found.attempt([&] {
      Json facts = shard_facts(path, metadata.vocab_size, found);
      tokens += facts["tokens"].get<std::uint64_t>();
      if (first.is_null()) first = facts["first_tokens"];
      if (paths.size() > 1) facts.erase("first_tokens");
      shards.push_back(std::move(facts));
    });
    if (!sound) shards.push_back(damaged_facts(path));
  }
  if (paths.size() == 1) {
    found.facts.update(shards.front());
  } else {
    found.facts["tokens"] = tokens;
    found.facts["first_tokens"] = first;
    found.facts["shards"] = std::move(shards);
  }
  if (metadata.present) {
    found.facts["metadata"] = {{"file", file.string()}};
    found.facts["metadata"].update(metadata_facts(metadata));
  } else if (!fs::exists(status_of(file))) {
    found.facts["metadata"] = "none beside it: the vocabulary and its special ids must come from the configuration";
  }
}

}  // namespace outeffhop
