// The one file of the model that knows which models there are.
#include "model/language_model.h"

namespace outeffhop {

std::unique_ptr<Model> make_model(const ModelConfig& config, const ModelOptions& options, Device& device) {
  validate(config);
  softmax_constant(config.attn_softmax);  // what this binary was not built for is refused here, before memory is taken
  require(options.max_batch >= 1 && options.max_sequence >= 1, "a model was asked for batches of {} x {} tokens",
          options.max_batch, options.max_sequence);
  if (options.max_sequence > config.max_position_embeddings) {
    fail(ErrorKind::usage, "sequences of {} tokens do not fit model.max_position_embeddings, {}", options.max_sequence,
         config.max_position_embeddings);
  }
  return config.model_type == "bert" ? make_bert(config, options, device) : make_opt(config, options, device);
}

ParameterTable make_parameter_table(const ModelConfig& config) {
  validate(config);
  return config.model_type == "bert" ? bert_parameters(config) : opt_parameters(config);
}

std::int64_t position_offset(const ModelConfig& config) { return config.model_type == "opt" ? 2 : 0; }

std::int64_t padding_position(const ModelConfig& config) { return config.model_type == "opt" ? 1 : -1; }

}  // namespace outeffhop
