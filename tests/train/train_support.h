// Small runs that take a fraction of a second a step.
#pragma once

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/data/data_support.h"
#include "train/config.h"
#include "train/files.h"
#include "train/training.h"

namespace outeffhop::test {

/// A corpus that can be learnt by heart: each token decides the next (2 generates the units modulo 59, so every chain is the
/// same circle). Tokens 5..62 of a vocabulary of 64; 0 to 3 are special.
inline std::vector<std::uint16_t> chained_tokens(std::size_t count, std::uint32_t begin = 1) {
  std::vector<std::uint16_t> tokens(count);
  std::uint32_t at = begin;
  for (std::uint16_t& token : tokens) {
    token = static_cast<std::uint16_t>(4 + at);
    at = 2 * at % 59;
  }
  return tokens;
}

/// A directory with shards, their metadata, and room for runs.
struct TinyCorpus {
  TemporaryDirectory directory;

  explicit TinyCorpus(std::size_t tokens = 4096) {
    write_shard(directory.path() / "tiny_train_000.bin", chained_tokens(tokens));
    write_shard(directory.path() / "tiny_train_001.bin", chained_tokens(tokens / 2, 5));
    write_shard(directory.path() / "tiny_val_000.bin", chained_tokens(512, 9));
    write_bytes(directory.path() / "metadata.json",
                R"({"vocab_size": 64, "special_ids": [0, 1, 2, 3], "mask_id": 3, "pad_id": 0, "bos_id": 1, "eos_id": 2})");
  }

  std::string path(const std::string& name) const { return (directory.path() / name).string(); }

  /// A configuration of a model with two layers, dropout and two micro-batches a step.
  nlohmann::json config(const std::string& model_type, const std::string& run) const {
    return {{"model",
             {{"model_type", model_type},
              {"hidden_size", 32},
              {"num_hidden_layers", 2},
              {"num_attention_heads", 4},
              {"intermediate_size", 64},
              {"max_position_embeddings", 16},
              {"hidden_dropout_prob", 0.1},
              {"attention_probs_dropout_prob", 0.1}}},
            {"data", {{"train", path("tiny_train_*.bin")}, {"validation", path("tiny_val_*.bin")}, {"sequence_length", 16}}},
            {"training", {{"steps", 40}, {"global_batch_size", 8}, {"micro_batch_size", 4}, {"seed", 7}, {"threads", 1}}},
            {"optimizer", {{"learning_rate", 3e-3}}},
            {"schedule", {{"warmup_steps", 2}}},
            {"evaluation", {{"interval", 0}, {"batches", 2}}},
            {"checkpoint", {{"interval", 0}}},
            {"logging", {{"interval", 1}}},
            {"output", path(run)}};
  }
};

inline TrainOptions quiet_options(const nlohmann::json& config, const std::vector<std::string>& changes = {}) {
  std::vector<Override> overrides;
  for (const std::string& change : changes) overrides.push_back(parse_override(change));
  TrainOptions options;
  options.config = read_config(config, "test", overrides);
  options.quiet = true;
  options.device = "cpu";  // whatever the machine has
  return options;
}

inline std::vector<nlohmann::json> read_metrics(const std::filesystem::path& run) {
  std::vector<nlohmann::json> objects;
  std::ifstream lines(run / "metrics.jsonl");
  for (std::string line; std::getline(lines, line);) objects.push_back(nlohmann::json::parse(line));
  return objects;
}

/// The losses of the logged steps.
inline std::vector<double> read_losses(const std::filesystem::path& run) {
  std::vector<double> losses;
  for (const nlohmann::json& object : read_metrics(run)) {
    if (object.contains("loss")) losses.push_back(object["loss"].get<double>());
  }
  return losses;
}

}  // namespace outeffhop::test
