// `outeffhop inspect PATH`: what a file or directory holds, and whether it is sound.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

namespace outeffhop {

/// What was found. Something damaged is a finding too: it is described as far as it can be read.
struct Inspection {
  /// "kind" and what belongs to it; last "problems", a list of sentences, where there are any.
  nlohmann::ordered_json facts = nlohmann::ordered_json::object();
  int exit_code = 0;  ///< that of the first problem: 3 for data, 4 for checkpoints and safetensors files

  /// Runs `look`; an Error(data), (checkpoint), (unsupported) or (usage) it throws becomes a problem. False: there was one.
  /// Usage errors arise from damaged contents here and count as checkpoint errors.
  bool attempt(const std::function<void()>& look);
  void problem(int exit_code, const std::string& sentence);

 private:
  nlohmann::ordered_json problems_ = nlohmann::ordered_json::array();
  friend Inspection inspect(const std::string& path);
};

/// Looks at a token shard, a directory or glob pattern of shards, a safetensors file, a model directory or checkpoint, or a
/// run directory. Throws Error(io) for a path that is not there, Error(usage) for one that is none of these.
Inspection inspect(const std::string& path);

// The kinds, each in a source of its own; they fill `found`.
void inspect_shards(const std::string& pattern, Inspection& found);
void inspect_safetensors(const std::filesystem::path& file, Inspection& found);
void inspect_model_directory(const std::filesystem::path& directory, Inspection& found);
void inspect_run(const std::filesystem::path& run, Inspection& found);

/// What a checkpoint's manifest promises and what is there: a list of {file, bytes, state}, where the state of a sound file
/// is "sound". A damaged manifest or file is a problem of `found`.
nlohmann::ordered_json inspect_files(const std::filesystem::path& checkpoint, Inspection& found);

/// The whole of a file. Throws Error(checkpoint) where it is missing.
std::string read_present_file(const std::filesystem::path& file);

/// Aligned text for people, from any facts: scalars as two columns, lists of objects as tables.
std::string facts_text(const nlohmann::ordered_json& facts);

}  // namespace outeffhop
