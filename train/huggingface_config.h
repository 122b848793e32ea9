// ModelConfig and Hugging Face's config.json, in both directions.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "model/config.h"
#include "train/schema.h"

namespace outeffhop {

/// The epsilon of every layer norm of transformers' OPT classes, whose configuration has no field for it.
constexpr double kOptLayerNormEpsilon = 1e-5;

/// What Hugging Face's own classes default to for "bert" or "opt", except attn_softmax, whose default is this binary's.
/// Throws Error(usage) for another model type.
ModelConfig default_model_config(const std::string& model_type);

/// Declares the fields of `config` in the schema's present block, under BERT's names with OPT's own as aliases.
/// vocab_size and pad_token_id may be "auto" (kAuto): the caller resolves them from the data's metadata.
void describe_model(Schema& schema, ModelConfig& config);

/// Reads a config.json as found beside a model.safetensors. Fields that do not matter here are passed over; those that ask
/// for another architecture (post-norm OPT, relative positions, decoder BERT, untied head) are refused, Error(unsupported).
/// A "pad_token_id" of null means that there is none.
/// A file without "attn_softmax" comes from somewhere else and means "vanilla".
ModelConfig read_huggingface_config(const nlohmann::json& values, const std::string& origin);

/// Reads the text of a model directory's config.json; `origin` begins the messages. The result has passed validate(). Throws
/// Error(checkpoint) or, for what does not exist here, Error(unsupported).
ModelConfig parse_model_config(std::string_view text, const std::string& origin);

/// Ids that a config.json names and the model itself does not need; kNoId where nobody knows them.
struct TextIds {
  std::int64_t bos = kNoId, eos = kNoId;
};

/// The config.json of a checkpoint: loads in transformers' BertForMaskedLM or OPTForCausalLM, and back here unchanged.
nlohmann::ordered_json write_huggingface_config(const ModelConfig& config, const TextIds& ids);

}  // namespace outeffhop
