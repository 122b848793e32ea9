// What makes a model impossible, said by field and value; the softmax and activation names.
#include "model/config.h"

#include <functional>

#include "kernels/attention.h"
#include "kernels/error.h"
#include "model/model.h"
#include "tests/catch.h"
#include "tests/model/model_support.h"

using namespace outeffhop;
using test::contains;
using test::error_message;

namespace {

ErrorKind kind_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.kind();
  }
  return ErrorKind::internal;
}

}  // namespace

TEST_CASE("attn_softmax names its constant") {
  CHECK(softmax_constant("vanilla") == 0.0f);
  CHECK(softmax_constant("softmax1") == 1.0f);
  CHECK(softmax_constant("softmax_n(4)") == 4.0f);
  CHECK(softmax_constant("softmax_n(0.25)") == 0.25f);
  CHECK(softmax_constant("softmax_n(0)") == 0.0f);
}

TEST_CASE("an attn_softmax that is not understood is refused with those that exist") {
  for (const char* text : {"", "softmax", "Softmax1", "softmax1 ", "softmax_n", "softmax_n()", "softmax_n(-1)",
                           "softmax_n(-0)", "softmax_n(4", "softmax_n(4) ", "softmax_n( 4)", "softmax_n(4x)",
                           "softmax_n(nan)", "softmax_n(inf)", "softmax_n(1e99)", "clipped(-.025:1)", "entmax"}) {
    INFO("attn_softmax = \"" << text << "\"");
    CHECK(kind_of([&] { softmax_constant(text); }) == ErrorKind::usage);
    const std::string message = error_message([&] { softmax_constant(text); });
    for (const char* name : {"\"vanilla\"", "\"softmax1\"", "softmax_n(N)"}) CHECK(contains(message, name));
  }
}

TEST_CASE("hidden_act names its activation") {
  CHECK(activation_of("gelu") == Activation::gelu_erf);
  CHECK(activation_of("gelu_new") == Activation::gelu_tanh);
  CHECK(activation_of("relu") == Activation::relu);
  const std::string message = error_message([] { activation_of("silu"); });
  CHECK(contains(message, "silu"));
  CHECK(contains(message, "gelu_new"));
}

TEST_CASE("a config that no model can be built from is refused by field and value") {
  struct Case {
    const char* field;
    const char* value;
    std::function<void(ModelConfig&)> break_it;
  };
  const Case cases[] = {
      {"model_type", "gpt", [](ModelConfig& c) { c.model_type = "gpt"; }},
      {"vocab_size", "0", [](ModelConfig& c) { c.vocab_size = 0; }},
      {"hidden_size", "-12", [](ModelConfig& c) { c.hidden_size = -12; }},
      {"hidden_size", "13", [](ModelConfig& c) { c.hidden_size = 13; }},
      {"num_hidden_layers", "0", [](ModelConfig& c) { c.num_hidden_layers = 0; }},
      {"num_attention_heads", "0", [](ModelConfig& c) { c.num_attention_heads = 0; }},
      {"intermediate_size", "5000000000", [](ModelConfig& c) { c.intermediate_size = 5000000000; }},
      {"max_position_embeddings", "0", [](ModelConfig& c) { c.max_position_embeddings = 0; }},
      {"type_vocab_size", "0", [](ModelConfig& c) { c.type_vocab_size = 0; }},
      {"hidden_act", "tanh", [](ModelConfig& c) { c.hidden_act = "tanh"; }},
      {"hidden_dropout_prob", "1", [](ModelConfig& c) { c.hidden_dropout_prob = 1.0; }},
      {"attention_probs_dropout_prob", "-0.1", [](ModelConfig& c) { c.attention_probs_dropout_prob = -0.1; }},
      {"initializer_range", "-0.02", [](ModelConfig& c) { c.initializer_range = -0.02; }},
      {"layer_norm_eps", "0", [](ModelConfig& c) { c.layer_norm_eps = 0.0; }},
      {"pad_token_id", "19", [](ModelConfig& c) { c.pad_token_id = 19; }},
      {"pad_token_id", "-2", [](ModelConfig& c) { c.pad_token_id = -2; }},
      {"word_embed_proj_dim", "8", [](ModelConfig& c) { c.word_embed_proj_dim = 8; }},
      {"attn_softmax", "softmax2", [](ModelConfig& c) { c.attn_softmax = "softmax2"; }},
      {"attention_init", "xavier", [](ModelConfig& c) { c.attention_init = "xavier"; }},
  };
  validate(test::tiny_bert());
  validate(test::tiny_opt());
  for (const Case& broken : cases) {
    ModelConfig config = test::tiny_bert();
    broken.break_it(config);
    INFO(broken.field << " = " << broken.value);
    CHECK(kind_of([&] { validate(config); }) == ErrorKind::usage);
    const std::string message = error_message([&] { validate(config); });
    CHECK(contains(message, std::string("model.") + broken.field));
    CHECK(contains(message, broken.value));
  }
  ModelConfig opt = test::tiny_opt();
  opt.word_embed_proj_dim = -4;
  const std::string message = error_message([&] { validate(opt); });
  CHECK(contains(message, "word_embed_proj_dim"));
  CHECK(contains(message, "-4"));
}

TEST_CASE("positions start where Hugging Face starts them") {
  CHECK(position_offset(test::tiny_bert()) == 0);
  CHECK(padding_position(test::tiny_bert()) == -1);
  CHECK(position_offset(test::tiny_opt()) == 2);
  CHECK(padding_position(test::tiny_opt()) == 1);
}
