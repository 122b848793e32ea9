// A run's configuration: what the JSON file, --set and --out decide.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "data/shards.h"
#include "model/config.h"
#include "model/model.h"
#include "train/schedule.h"
#include "train/schema.h"

namespace outeffhop {

struct DataConfig {
  std::string train, validation;  ///< glob patterns of token shards; validation may be empty
  std::int64_t sequence_length = 128;
  std::string sampling = "stream";  ///< "stream", "documents"
  bool packing = true;              ///< documents: several in one row
  std::int64_t document_delimiter = kAuto;
  std::string delimiter_at = "start";  ///< "start", "end"
  std::string objective = "auto";  ///< "masked_lm", "causal_lm"; auto: by the model's type
  double mlm_probability = 0.15;
  std::int64_t mask_token_id = kAuto;
  std::vector<std::int64_t> special_token_ids;  ///< never masked
  bool special_tokens_known = false;            ///< false: from the metadata beside the shards
};

struct TrainingConfig {
  std::int64_t steps = 1000;
  std::int64_t global_batch_size = 32;    ///< sequences a step
  std::int64_t micro_batch_size = kAuto;  ///< sequences at a time; auto: all of them
  std::int64_t seed = 1000;
  std::string dtype = "fp32";
  std::string recompute = "none";  ///< "none", "cheap", "block"
  std::int64_t threads = 0;
  std::int64_t max_bad_steps = 20;
  double spike_zscore = 0.0;  ///< 0: no step is a spike
  std::int64_t spike_window = 100;
};

struct OptimizerConfig {
  double learning_rate = 1e-4;
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  double weight_decay = 0.01;
  bool wd_LN_gamma = false;
  double max_gradient_norm = 1.0;
};

struct EvaluationConfig {
  std::int64_t interval = 1000;     ///< steps; 0: only at the end
  std::int64_t batches = 0;         ///< 0: the whole set
  std::int64_t batch_size = kAuto;  ///< auto: the micro-batch
  std::int64_t seed = 3000;
  bool outliers = false;  ///< outlier metrics in metrics.jsonl
};

struct CheckpointConfig {
  std::int64_t interval = 1000;  ///< steps; 0: only at the end
  std::int64_t keep_last = 2;
  std::int64_t keep_every = 0;  ///< steps; 0: none
};

struct LoggingConfig {
  std::int64_t interval = 10;
};

struct Config {
  ModelConfig model;
  DataConfig data;
  TrainingConfig training;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  EvaluationConfig evaluation;
  CheckpointConfig checkpoint;
  LoggingConfig logging;
  std::string output;  ///< run directory

  std::int64_t accumulation() const { return training.global_batch_size / training.micro_batch_size; }
};

/// Every key of `config`, bound to it. `config.model` must already hold the defaults of its model type.
Schema describe(Config& config);

/// What every key is while no one sets it: the defaults of a model type ("bert", "opt"), with "auto" where the data decides.
Config default_config(const std::string& model_type);

/// One --set KEY=VALUE: KEY is dotted, VALUE is JSON or, where it is not, a bare string.
struct Override {
  std::string key, value;
};

/// Parses "a.b=value"; throws Error(usage).
Override parse_override(const std::string& text);

/// Reads a JSON file (comments allowed), applies the overrides and checks every key. What only the data can tell is still
/// kAuto: see resolve(). Throws Error(usage) or Error(io).
Config load_config(const std::filesystem::path& path, const std::vector<Override>& overrides);

/// The same from the file's text; `origin` begins the messages.
Config parse_config(std::string_view text, const std::string& origin, const std::vector<Override>& overrides = {});

/// The same from JSON in memory.
Config read_config(const nlohmann::json& values, const std::string& origin, const std::vector<Override>& overrides = {});

/// Replaces every "auto" by its value, with the metadata of the training shards, and checks what only makes sense together.
/// Throws Error(usage) naming the keys and what would do.
void resolve(Config& config, const ShardMetadata& metadata);

/// Throws Error(usage), naming `key`, for a batch of 2^31 tokens or more.
void check_batch_tokens(const char* key, std::int64_t batch_size, std::int64_t sequence_length);

/// The resolved configuration as JSON; read_config() reads it back unchanged.
nlohmann::ordered_json write_config(const Config& config);

/// Compares the configuration of a checkpoint with that of the run that would continue it. Throws Error(usage) naming the
/// first key that may not change; returns a line for each change worth telling.
std::vector<std::string> check_resume(const nlohmann::json& before, const Config& now);

/// "fp32" or "bf16" as a DType.
DType dtype_of(const std::string& name);

/// "none", "cheap" or "block" as a Recompute.
Recompute recompute_of(const std::string& name);

}  // namespace outeffhop
