// What a model is: the fields of a Hugging Face config.json that matter here, by their names, and what OutEffHop adds.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/linear.h"

namespace outeffhop {

struct ModelConfig {
  std::string model_type = "bert";      ///< "bert" (BertForMaskedLM) or "opt" (OPTForCausalLM)
  std::int64_t vocab_size = 30522;
  std::int64_t hidden_size = 768;
  std::int64_t num_hidden_layers = 12;
  std::int64_t num_attention_heads = 12;
  std::int64_t intermediate_size = 3072;      ///< OPT's config.json calls it ffn_dim
  std::string hidden_act = "gelu";            ///< "gelu" (erf), "gelu_new" (tanh), "relu"; OPT: activation_function
  double hidden_dropout_prob = 0.1;           ///< OPT: dropout
  double attention_probs_dropout_prob = 0.1;  ///< OPT: attention_dropout
  std::int64_t max_position_embeddings = 512; ///< OPT's table has two more rows (position offset 2)
  std::int64_t type_vocab_size = 2;           ///< BERT only
  double initializer_range = 0.02;            ///< OPT: init_std
  double layer_norm_eps = 1e-12;              ///< OPT: 1e-5, not in its config.json
  std::int64_t word_embed_proj_dim = 0;       ///< OPT only; 0 means hidden_size. Otherwise project_in/out, without bias
  std::int64_t pad_token_id = 0;              ///< its embedding row starts at 0 and gets no gradient from the look-up; -1: none

  std::string attn_softmax = "softmax1";      ///< "vanilla", "softmax1", "softmax_n(N)"
  std::string attention_init = "huggingface"; ///< or "linear": U(+-1/sqrt(fan_in)) for weight and bias of q, k, v (OPT: and
                                              ///< out_proj), what the reference's replaced attention modules have

  std::int64_t embedding_size() const { return word_embed_proj_dim ? word_embed_proj_dim : hidden_size; }
};

/// Throws Error(usage) naming the field, its value and what was expected, unless a model can be built from `config`.
void validate(const ModelConfig& config);

/// The parameters of a model, but for biases and layer norms, in floating point: sizes whose product overflows integers are
/// still compared right.
double parameter_estimate(const ModelConfig& config);

/// The constant n of the attention's denominator that `attn_softmax` names; throws Error(usage) naming those that exist,
/// and Error(unsupported) for any but "vanilla" in a binary built with OUTEFFHOP_VANILLA_SOFTMAX.
float softmax_constant(const std::string& attn_softmax);

/// The activation that `hidden_act` names; throws Error(usage).
Activation activation_of(const std::string& hidden_act);

}  // namespace outeffhop
