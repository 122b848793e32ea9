#include "train/huggingface_config.h"

#include <limits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/error.h"

namespace outeffhop {
namespace {

/// Refuses a field whose value asks for what the models here do not do.
void expect_field(const nlohmann::json& values, const std::string& origin, const char* name, const nlohmann::json& expected,
                  const char* meaning) {
  const auto found = values.find(name);
  if (found == values.end() || found->is_null() || *found == expected) return;
  fail(ErrorKind::unsupported, "{}: \"{}\" is {}: {}; only {} can be used", origin, name, found->dump(), meaning,
       expected.dump());
}

nlohmann::ordered_json id_or_null(std::int64_t id) {
  return id >= 0 ? nlohmann::ordered_json(id) : nlohmann::ordered_json(nullptr);
}

}  // namespace

ModelConfig default_model_config(const std::string& model_type) {
  ModelConfig config;
  config.attn_softmax = attention_build().default_softmax;
  if (model_type == "bert") return config;
  if (model_type != "opt") {
    fail(ErrorKind::usage, "model.model_type is \"{}\", but must be one of \"bert\", \"opt\"", model_type);
  }
  config.model_type = "opt";
  config.vocab_size = 50272;
  config.hidden_act = "relu";
  config.attention_probs_dropout_prob = 0.0;
  config.max_position_embeddings = 2048;
  config.layer_norm_eps = kOptLayerNormEpsilon;
  config.pad_token_id = 1;
  return config;
}

void describe_model(Schema& schema, ModelConfig& config) {
  constexpr double kUnbounded = std::numeric_limits<double>::infinity();
  schema.choice("model_type", &config.model_type, {"bert", "opt"}, "BertForMaskedLM or OPTForCausalLM");
  schema.integer_or_auto("vocab_size", &config.vocab_size, 1, "token ids; auto: as many as the data's metadata says");
  schema.integer("hidden_size", &config.hidden_size, 1, "channels of the residual stream");
  schema.integer("num_hidden_layers", &config.num_hidden_layers, 1, "transformer layers");
  schema.integer("num_attention_heads", &config.num_attention_heads, 1, "heads; must divide hidden_size");
  schema.integer("intermediate_size", &config.intermediate_size, 1, "channels of the feed-forward layer").alias("ffn_dim");
  schema
      .choice("hidden_act", &config.hidden_act, {"gelu", "gelu_new", "relu"}, "gelu is the erf form, gelu_new the tanh form")
      .alias("activation_function");
  schema.number("hidden_dropout_prob", &config.hidden_dropout_prob, 0.0, 0.99, "dropout of residual branches and embeddings")
      .alias("dropout");
  schema
      .number("attention_probs_dropout_prob", &config.attention_probs_dropout_prob, 0.0, 0.99,
              "dropout of attention probabilities")
      .alias("attention_dropout");
  schema.integer("max_position_embeddings", &config.max_position_embeddings, 1, "longest sequence");
  schema.integer("type_vocab_size", &config.type_vocab_size, 1, "segment types (BERT)");
  schema.number("initializer_range", &config.initializer_range, 0.0, kUnbounded, "standard deviation of initial weights")
      .alias("init_std");
  schema.number("layer_norm_eps", &config.layer_norm_eps, kAboveZero, 1.0, "epsilon of every layer norm");
  schema.integer("word_embed_proj_dim", &config.word_embed_proj_dim, 0,
                 "OPT: channels of the token embedding when they differ from hidden_size; 0: the same");
  schema.id_auto_or_none("pad_token_id", &config.pad_token_id,
                         "padding token, whose embedding does not learn from the input; auto: as the data's metadata says");
  schema.text("attn_softmax", &config.attn_softmax, "vanilla, softmax1 (OutEffHop) or softmax_n(N)");
  schema.choice("attention_init", &config.attention_init, {"huggingface", "linear"},
                "linear: attention projections start uniform in +-1/sqrt(fan in), as in the OutEffHop reference code");
}

ModelConfig read_huggingface_config(const nlohmann::json& values, const std::string& origin) {
  if (!values.is_object()) fail(ErrorKind::checkpoint, "{}: expected a JSON object", origin);
  const auto type = values.find("model_type");
  if (type == values.end() || !type->is_string()) {
    fail(ErrorKind::checkpoint, "{}: it does not say its \"model_type\" (\"bert\" or \"opt\")", origin);
  }
  if (*type != "bert" && *type != "opt") {
    fail(ErrorKind::unsupported, "{}: model_type is {}; \"bert\" and \"opt\" can be used", origin, type->dump());
  }
  ModelConfig config = default_model_config(type->get<std::string>());
  config.attn_softmax = "vanilla";

  expect_field(values, origin, "tie_word_embeddings", true, "the output layer here is the transposed token embedding");
  if (config.model_type == "bert") {
    expect_field(values, origin, "position_embedding_type", "absolute", "relative positions are another model");
    expect_field(values, origin, "is_decoder", false, "this BERT is an encoder");
  } else {
    expect_field(values, origin, "do_layer_norm_before", true, "this OPT normalises before each block (pre-LN)");
    expect_field(values, origin, "_remove_final_layer_norm", false, "this OPT ends with a layer norm");
    expect_field(values, origin, "enable_bias", true, "this OPT has biases");
    expect_field(values, origin, "layer_norm_elementwise_affine", true, "its layer norms have weights");
    expect_field(values, origin, "layer_norm_eps", kOptLayerNormEpsilon, "transformers' OPT has no such setting");
  }

  Schema schema;
  describe_model(schema, config);
  nlohmann::json present = values;
  for (auto it = present.begin(); it != present.end();) it = it->is_null() ? present.erase(it) : std::next(it);
  // Names that mean something else, or nothing, to the other model's class.
  using Names = std::vector<const char*>;
  for (const char* name : config.model_type == "bert"
                              ? Names{"ffn_dim", "activation_function", "dropout", "attention_dropout", "init_std"}
                              : Names{"intermediate_size", "hidden_act", "hidden_dropout_prob",
                                      "attention_probs_dropout_prob", "initializer_range"}) {
    present.erase(name);
  }
  schema.read(present, origin, Schema::Unknown::ignore);
  if (config.word_embed_proj_dim == config.hidden_size) config.word_embed_proj_dim = 0;
  // A null that counts: transformers' embedding then has no padding row. Absent, the class's own default holds.
  const auto padding = values.find("pad_token_id");
  if (padding != values.end() && padding->is_null()) config.pad_token_id = kNoId;
  return config;
}

ModelConfig parse_model_config(std::string_view text, const std::string& origin) {
  try {
    const ModelConfig config = read_huggingface_config(parse_json(text, origin, {.kind = ErrorKind::checkpoint}), origin);
    validate(config);
    softmax_constant(config.attn_softmax);
    return config;
  } catch (const Error& e) {
    // The same mistake in a run's configuration would be the user's; here the file is at fault.
    if (e.kind() != ErrorKind::usage) throw;
    fail(ErrorKind::checkpoint, "{} cannot be used: {}", origin, e.what());
  }
}

nlohmann::ordered_json write_huggingface_config(const ModelConfig& config, const TextIds& ids) {
  nlohmann::ordered_json out;
  if (config.model_type == "bert") {
    out = {{"architectures", {"BertForMaskedLM"}},
           {"model_type", "bert"},
           {"attention_probs_dropout_prob", config.attention_probs_dropout_prob},
           {"classifier_dropout", nullptr},
           {"hidden_act", config.hidden_act},
           {"hidden_dropout_prob", config.hidden_dropout_prob},
           {"hidden_size", config.hidden_size},
           {"initializer_range", config.initializer_range},
           {"intermediate_size", config.intermediate_size},
           {"layer_norm_eps", config.layer_norm_eps},
           {"max_position_embeddings", config.max_position_embeddings},
           {"num_attention_heads", config.num_attention_heads},
           {"num_hidden_layers", config.num_hidden_layers},
           {"pad_token_id", id_or_null(config.pad_token_id)},
           {"position_embedding_type", "absolute"},
           {"type_vocab_size", config.type_vocab_size},
           {"vocab_size", config.vocab_size}};
  } else {
    out = {{"architectures", {"OPTForCausalLM"}},
           {"model_type", "opt"},
           {"_remove_final_layer_norm", false},
           {"activation_function", config.hidden_act},
           {"attention_dropout", config.attention_probs_dropout_prob},
           {"bos_token_id", id_or_null(ids.bos)},
           {"do_layer_norm_before", true},
           {"dropout", config.hidden_dropout_prob},
           {"enable_bias", true},
           {"eos_token_id", id_or_null(ids.eos)},
           {"ffn_dim", config.intermediate_size},
           {"hidden_size", config.hidden_size},
           {"init_std", config.initializer_range},
           {"layer_norm_elementwise_affine", true},
           {"layerdrop", 0.0},
           {"max_position_embeddings", config.max_position_embeddings},
           {"num_attention_heads", config.num_attention_heads},
           {"num_hidden_layers", config.num_hidden_layers},
           {"pad_token_id", id_or_null(config.pad_token_id)},
           {"vocab_size", config.vocab_size},
           {"word_embed_proj_dim", config.embedding_size()}};
  }
  out["tie_word_embeddings"] = true;
  out["torch_dtype"] = "float32";
  out["use_cache"] = true;
  out["attn_softmax"] = config.attn_softmax;
  out["attention_init"] = config.attention_init;
  return out;
}

}  // namespace outeffhop
