// metadata.json, as scripts/tokenize_corpus.py writes it beside its shards.
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "data/json.h"
#include "data/shards.h"
#include "kernels/error.h"

namespace outeffhop {
namespace {

using Json = nlohmann::json;

/// The newest layout this program reads. A later one may give the same keys another meaning.
constexpr std::int64_t kMetadataVersion = 1;

/// Typed access to one metadata file, so that every complaint names file, key and value.
class MetadataReader {
 public:
  MetadataReader(std::string path, Json root) : path_(std::move(path)), root_(std::move(root)) {
    if (!root_.is_object()) fail(ErrorKind::data, "{} holds {}, expected a JSON object", path_, root_.type_name());
  }

  /// The whole number at `key` in [low, high]; `missing` when the key is absent or null.
  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high, std::int64_t missing) const {
    const auto found = root_.find(key);
    return found == root_.end() || found->is_null() ? missing : to_integer(key, *found, low, high);
  }

  std::vector<std::int32_t> ids(const char* key, std::int64_t id_limit) const {
    std::vector<std::int32_t> result;
    const auto found = root_.find(key);
    if (found == root_.end() || found->is_null()) return result;
    if (!found->is_array()) complain(key, *found, "a list of token ids");
    for (const Json& id : *found) result.push_back(static_cast<std::int32_t>(to_integer(key, id, 0, id_limit)));
    return result;
  }

  /// The perplexity at `key`.`part`: at least 1, or 0 when unknown (absent or null).
  double perplexity(const char* key, const char* part) const {
    const auto found = root_.find(key);
    if (found == root_.end() || found->is_null()) return 0.0;
    if (!found->is_object()) complain(key, *found, "an object with \"all\" and \"non_special\"");
    const auto value = found->find(part);
    if (value == found->end() || value->is_null()) return 0.0;
    if (!value->is_number() || !std::isfinite(value->get<double>()) || value->get<double>() < 1.0) {
      complain(fmt::format("{}.{}", key, part), *value, "a number of at least 1");
    }
    return value->get<double>();
  }

 private:
  std::int64_t to_integer(const char* key, const Json& value, std::int64_t low, std::int64_t high) const {
    const bool fits = value.is_number_integer() &&
                      !(value.is_number_unsigned() &&
                        value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
    if (!fits || value.get<std::int64_t>() < low || value.get<std::int64_t>() > high) {
      complain(key, value, fmt::format("a whole number from {} to {}", low, high));
    }
    return value.get<std::int64_t>();
  }

  [[noreturn]] void complain(const std::string& key, const Json& value, const std::string& expected) const {
    fail(ErrorKind::data, "{} has {} = {}, expected {}", path_, key, dump_text(value), expected);
  }

  std::string path_;
  Json root_;
};

}  // namespace

ShardMetadata read_shard_metadata(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(ErrorKind::io, "cannot open {}: {}", path, std::strerror(errno));
  std::ostringstream text;
  text << file.rdbuf();
  if (file.bad()) fail(ErrorKind::io, "cannot read {}: {}", path, std::strerror(errno));
  return parse_shard_metadata(text.str(), path);
}

ShardMetadata parse_shard_metadata(std::string_view text, const std::string& path) {
  const char* way_out = ": make it again with scripts/tokenize_corpus.py, or remove it";
  const MetadataReader reader(path, parse_json(text, path, {.kind = ErrorKind::data, .way_out = way_out}));
  constexpr std::int64_t largest = std::numeric_limits<std::int32_t>::max();
  reader.integer("version", 1, kMetadataVersion, kMetadataVersion);

  ShardMetadata metadata;
  metadata.present = true;
  metadata.vocab_size = reader.integer("vocab_size", 1, largest, 0);
  const std::int64_t id_limit = metadata.vocab_size > 0 ? metadata.vocab_size - 1 : largest;
  metadata.special_ids = reader.ids("special_ids", id_limit);
  const auto id = [&](const char* key) { return static_cast<std::int32_t>(reader.integer(key, -1, id_limit, -1)); };
  metadata.mask_id = id("mask_id");
  metadata.pad_id = id("pad_id");
  metadata.cls_id = id("cls_id");
  metadata.sep_id = id("sep_id");
  metadata.bos_id = id("bos_id");
  metadata.eos_id = id("eos_id");
  metadata.unigram_perplexity_all = reader.perplexity("unigram_perplexity", "all");
  metadata.unigram_perplexity_non_special = reader.perplexity("unigram_perplexity", "non_special");
  return metadata;
}

}  // namespace outeffhop
