// The two JSON files that make a model directory a checkpoint, from their text. Nothing in them is taken on trust: the
// manifest guards the others, but nobody guards the manifest.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "train/checkpoint.h"

namespace outeffhop {

/// What both files begin with as "format_version".
constexpr int kCheckpointFormatVersion = 1;

/// What manifest.json says of one file beside it.
struct ManifestEntry {
  std::string name;
  std::uint64_t bytes = 0;
  std::string xxh64;  ///< as hash_file() gives it
};

/// Reads manifest.json: at least model.safetensors, and only files of the checkpoint's own directory. `origin` begins the
/// messages. Throws Error(checkpoint).
std::vector<ManifestEntry> parse_manifest(std::string_view text, const std::string& origin);

/// Reads trainer.json: counts that are whole numbers from 0, seconds that are finite, a configuration that is an object.
/// `origin` begins the messages. Throws Error(checkpoint).
Resumable parse_trainer(std::string_view text, const std::string& origin);

}  // namespace outeffhop
