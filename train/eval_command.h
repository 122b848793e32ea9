// `outeffhop eval`: loss, perplexities and outlier metrics of a checkpoint on token shards.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace outeffhop {

struct EvalOptions {
  std::filesystem::path checkpoint;  ///< a Hugging Face model directory, or a run
  std::string data;                  ///< glob pattern of token shards
  std::int64_t sequence_length = 0;  ///< 0: as it was trained, or the model's longest
  std::string sampling;              ///< "stream" or "documents"; empty: as it was trained
  std::int64_t batch_size = 16;
  std::int64_t batches = 0;  ///< 0: all
  std::int64_t seed = -1;    ///< of the masking; -1: evaluation.seed of the run, or its default
  std::string device = "auto";
  std::string dtype = "fp32";
  int threads = 0;
  bool outliers = false;
  bool eager = false;  ///< DeviceOptions::eager
};

/// Evaluates and returns what there is to say: checkpoint, data, loss, perplexity, reference_perplexity, unigram_perplexity,
/// labelled_tokens, samples and, with outliers, the metrics of train/outliers.h. Throws Error.
nlohmann::ordered_json run_eval(const EvalOptions& options);

/// The same for people.
std::string eval_text(const nlohmann::ordered_json& result);

}  // namespace outeffhop
