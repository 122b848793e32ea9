// The sampler that a configuration asks for.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "data/sampler.h"
#include "data/shards.h"
#include "train/config.h"

namespace outeffhop {

/// `config` is resolved. `shuffle` false: for evaluation. The shards must outlive the sampler.
std::unique_ptr<Sampler> make_sampler(const Config& config, const ShardSet& shards, std::uint64_t seed, bool shuffle);

/// Identifies what is sampled, whatever the paths: a hash of token counts, of tokens at both ends of each shard, and of
/// where documents begin, if the sampler knows.
std::string data_fingerprint(const ShardSet& shards, const Sampler& sampler);

}  // namespace outeffhop
