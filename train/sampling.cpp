#include "train/sampling.h"

#include <algorithm>
#include <vector>

#include "data/document_sampler.h"
#include "kernels/error.h"
#include "train/files.h"

namespace outeffhop {

std::unique_ptr<Sampler> make_sampler(const Config& config, const ShardSet& shards, std::uint64_t seed, bool shuffle) {
  const DataConfig& data = config.data;
  if (data.sampling == "stream") return std::make_unique<StreamSampler>(shards, data.sequence_length, seed, shuffle);
  require(data.sampling == "documents", "the sampling \"{}\" is unknown", data.sampling);
  const DocumentRule rule = {data.document_delimiter == kAuto ? -1 : data.document_delimiter, data.delimiter_at == "end"};
  DocumentSettings settings;
  settings.T = data.sequence_length;
  settings.seed = seed;
  settings.shuffle = shuffle;
  settings.packing = data.packing;
  settings.pad_id = static_cast<std::int32_t>(std::max<std::int64_t>(0, config.model.pad_token_id));
  return std::make_unique<DocumentSampler>(shards, rule, settings);
}

std::string data_fingerprint(const ShardSet& shards, const Sampler& sampler) {
  constexpr std::uint64_t kEnd = 4096;
  std::string bytes;
  const auto append = [&](const void* data, std::size_t size) { bytes.append(static_cast<const char*>(data), size); };
  std::vector<std::int32_t> tokens(kEnd);
  for (const Shard& shard : shards.shards()) {
    const std::uint64_t count = shard.token_count();
    const std::uint64_t some = std::min(count, kEnd);
    append(&count, sizeof count);
    for (const std::uint64_t begin : {std::uint64_t{0}, count - some}) {
      shard.read(begin, some, tokens.data());
      append(tokens.data(), some * sizeof(std::int32_t));
    }
  }
  if (const auto starts = sampler.document_starts(); !starts.empty()) {
    bytes += hash_bytes({reinterpret_cast<const char*>(starts.data()), starts.size_bytes()});
  }
  return hash_bytes(bytes);
}

}  // namespace outeffhop
