#include "model/config.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>

#include "kernels/attention.h"
#include "kernels/error.h"

namespace outeffhop {
namespace {

void check_positive(const char* field, std::int64_t value) {
  if (value <= 0) fail(ErrorKind::usage, "model.{} is {}; expected a positive integer", field, value);
  // Ids and shapes of products are 32-bit in places; no dimension of a real model comes near.
  if (value > std::numeric_limits<std::int32_t>::max()) {
    fail(ErrorKind::usage, "model.{} is {}; expected at most {}", field, value, std::numeric_limits<std::int32_t>::max());
  }
}

/// Dropout counts in steps of 1/65536 (kernels/dropout.h), so 1 itself, which would drop everything, has no scale.
void check_probability(const char* field, double value) {
  constexpr double kLargest = 65535.0 / 65536.0;
  if (!(value >= 0.0 && value <= kLargest)) {
    fail(ErrorKind::usage, "model.{} is {}; expected a probability in [0, 1)", field, value);
  }
}

/// N of "vanilla", "softmax1" or "softmax_n(N)"; nothing for any other text.
std::optional<float> parse_softmax(std::string_view text) {
  if (text == "vanilla") return 0.0f;
  if (text == "softmax1") return 1.0f;
  constexpr std::string_view kPrefix = "softmax_n(";
  if (!text.starts_with(kPrefix) || !text.ends_with(")")) return std::nullopt;
  text.remove_prefix(kPrefix.size());
  text.remove_suffix(1);
  float n = 0.0f;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(n) || std::signbit(n)) return std::nullopt;
  return n;
}

float parse_softmax_or_fail(const std::string& attn_softmax) {
  const std::optional<float> n = parse_softmax(attn_softmax);
  if (!n) {
    fail(ErrorKind::usage,
         "model.attn_softmax is \"{}\"; expected \"vanilla\", \"softmax1\" or \"softmax_n(N)\" with a number N >= 0, e.g. "
         "\"softmax_n(4)\"",
         attn_softmax);
  }
  return *n;
}

}  // namespace

double parameter_estimate(const ModelConfig& config) {
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto embedding = static_cast<double>(config.embedding_size());
  return static_cast<double>(config.vocab_size) * embedding + static_cast<double>(config.max_position_embeddings) * hidden +
         static_cast<double>(config.num_hidden_layers) * hidden * (4.0 * hidden + 2.0 * static_cast<double>(config.intermediate_size));
}

void validate(const ModelConfig& config) {
  const bool bert = config.model_type == "bert";
  if (!bert && config.model_type != "opt") {
    fail(ErrorKind::usage, "model.model_type is \"{}\"; expected \"bert\" or \"opt\"", config.model_type);
  }
  check_positive("vocab_size", config.vocab_size);
  check_positive("hidden_size", config.hidden_size);
  check_positive("num_hidden_layers", config.num_hidden_layers);
  check_positive("num_attention_heads", config.num_attention_heads);
  check_positive("intermediate_size", config.intermediate_size);
  check_positive("max_position_embeddings", config.max_position_embeddings);
  if (config.hidden_size % config.num_attention_heads != 0) {
    fail(ErrorKind::usage, "model.hidden_size is {}; expected a multiple of model.num_attention_heads, {}",
         config.hidden_size, config.num_attention_heads);
  }
  constexpr std::int64_t kMostLayers = 1 << 14;
  if (config.num_hidden_layers > kMostLayers) {
    fail(ErrorKind::usage, "model.num_hidden_layers is {}; expected at most {}", config.num_hidden_layers, kMostLayers);
  }
  constexpr double kMostParameters = 0x1p42;  // far above what any machine holds, far below what integers count
  if (parameter_estimate(config) > kMostParameters) {
    fail(ErrorKind::usage,
         "model.hidden_size {}, num_hidden_layers {}, intermediate_size {}, vocab_size {} and max_position_embeddings {} make "
         "{:.3g} parameters; expected at most {:.3g}: make the largest of them smaller",
         config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.vocab_size,
         config.max_position_embeddings, parameter_estimate(config), kMostParameters);
  }
  activation_of(config.hidden_act);
  check_probability("hidden_dropout_prob", config.hidden_dropout_prob);
  check_probability("attention_probs_dropout_prob", config.attention_probs_dropout_prob);
  if (!(config.initializer_range >= 0.0) || !std::isfinite(config.initializer_range)) {
    fail(ErrorKind::usage, "model.initializer_range is {}; expected a standard deviation, 0 or more",
         config.initializer_range);
  }
  if (!(config.layer_norm_eps > 0.0) || !std::isfinite(config.layer_norm_eps)) {
    fail(ErrorKind::usage, "model.layer_norm_eps is {}; expected a small positive number", config.layer_norm_eps);
  }
  if (config.pad_token_id < -1 || config.pad_token_id >= config.vocab_size) {
    fail(ErrorKind::usage, "model.pad_token_id is {}; expected a token id in [0, vocab_size = {}), or -1 for none",
         config.pad_token_id, config.vocab_size);
  }
  if (bert) {
    check_positive("type_vocab_size", config.type_vocab_size);
    if (config.embedding_size() != config.hidden_size) {
      fail(ErrorKind::usage, "model.word_embed_proj_dim is {}; BERT has no such projection: leave it out or use \"opt\"",
           config.word_embed_proj_dim);
    }
  } else if (config.word_embed_proj_dim != 0) {
    check_positive("word_embed_proj_dim", config.word_embed_proj_dim);
  }
  parse_softmax_or_fail(config.attn_softmax);
  if (config.attention_init != "huggingface" && config.attention_init != "linear") {
    fail(ErrorKind::usage, "model.attention_init is \"{}\"; expected \"huggingface\" or \"linear\"", config.attention_init);
  }
}

float softmax_constant(const std::string& attn_softmax) {
  const float n = parse_softmax_or_fail(attn_softmax);
  if (n != 0.0f && attention_build().vanilla_only) {
    fail(ErrorKind::unsupported,
         "model.attn_softmax is \"{}\", but this program was built for the ordinary softmax alone "
         "(OUTEFFHOP_VANILLA_SOFTMAX); "
         "set it to \"vanilla\" or use the other build",
         attn_softmax);
  }
  return n;
}

Activation activation_of(const std::string& hidden_act) {
  if (hidden_act == "gelu") return Activation::gelu_erf;
  if (hidden_act == "gelu_new") return Activation::gelu_tanh;
  if (hidden_act == "relu") return Activation::relu;
  fail(ErrorKind::usage, "model.hidden_act is \"{}\"; expected \"gelu\", \"gelu_new\" or \"relu\"", hidden_act);
}

}  // namespace outeffhop
