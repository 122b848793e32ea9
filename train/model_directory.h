// A Hugging Face model directory: config.json and model.safetensors, ours or anyone's.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/parameters.h"

namespace outeffhop {

/// Reads the tensors of `table` from a model.safetensors (F32, F16 or BF16) into a flat array of table.flat_size() floats.
///
/// Other common spellings are understood: names without the "model." of OPT, LayerNorm.gamma and .beta of old BERT files.
/// Tied weights that stand in the file a second time (cls.predictions.decoder.*, lm_head.weight) must equal the first. Heads
/// that are not part of the model (bert.pooler.*, cls.seq_relationship.*) are passed over with a line in `notes`. A tensor
/// with values that are not finite gets a line in `notes`; without `notes` it is Error(checkpoint), as is one
/// that is missing, has another shape, or belongs to nothing.
std::vector<float> read_weights(const std::filesystem::path& file, const ParameterTable& table,
                                std::vector<std::string>* notes);

struct ModelDirectory {
  std::filesystem::path path;  ///< the directory that was read: a checkpoint, when a run was given
  ModelConfig config;
  std::vector<float> weights;  ///< flat, in the order of make_parameter_table(config)
  nlohmann::json run_config;   ///< of the run, where trainer.json tells: in our own checkpoints; null otherwise
  std::vector<std::string> notes;
};

/// Reads a model directory, or the newest verified checkpoint of a run directory. One with a manifest is verified first.
/// Throws Error(checkpoint), Error(io) or, for an architecture that does not exist here, Error(unsupported).
ModelDirectory read_model_directory(const std::filesystem::path& path);

}  // namespace outeffhop
