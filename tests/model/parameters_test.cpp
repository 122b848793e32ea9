// Parameter tables: the counts of the published models, names and shapes as Hugging Face has them, layout; initial values.
#include "model/parameters.h"

#include <cmath>
#include <set>

#include "kernels/error.h"
#include "model/model.h"
#include "tests/catch.h"
#include "tests/model/model_support.h"

using namespace outeffhop;

namespace {

ModelConfig bert_base() { return {}; }

ModelConfig opt_125m() {
  ModelConfig config;
  config.model_type = "opt";
  config.vocab_size = 50272;
  config.hidden_act = "relu";
  config.layer_norm_eps = 1e-5;
  config.initializer_range = 0.006;
  config.word_embed_proj_dim = 768;
  config.pad_token_id = 1;
  return config;
}

std::int64_t total_with_prefix(const ParameterTable& table, const std::string& prefix) {
  std::int64_t sum = 0;
  for (const Parameter& p : table.all()) {
    if (p.name.starts_with(prefix)) sum += p.count;
  }
  return sum;
}

std::vector<std::int64_t> shape(const ParameterTable& table, const std::string& name) {
  const Parameter* p = table.find(name);
  INFO(name);
  REQUIRE(p);
  return p->shape;
}

using Shape = std::vector<std::int64_t>;

std::vector<float> initial(const ParameterTable& table, std::uint64_t seed) {
  std::vector<float> flat(static_cast<std::size_t>(table.flat_size()), -7.0f);
  initialise(table, seed, flat.data());
  return flat;
}

std::vector<float> slice(const ParameterTable& table, const std::vector<float>& flat, const std::string& name) {
  const Parameter* p = table.find(name);
  INFO(name);
  REQUIRE(p);
  return {flat.begin() + p->offset, flat.begin() + p->offset + p->count};
}

struct Statistics {
  double mean = 0.0, deviation = 0.0, kurtosis = 0.0, smallest = 0.0, largest = 0.0;
};

Statistics statistics(const std::vector<float>& values) {
  Statistics s;
  s.smallest = s.largest = values.at(0);
  for (const double v : values) {
    s.mean += v / static_cast<double>(values.size());
    s.smallest = std::min(s.smallest, v);
    s.largest = std::max(s.largest, v);
  }
  double second = 0.0, fourth = 0.0;
  for (const double v : values) {
    const double d = (v - s.mean) * (v - s.mean);
    second += d / static_cast<double>(values.size());
    fourth += d * d / static_cast<double>(values.size());
  }
  s.deviation = std::sqrt(second);
  s.kurtosis = fourth / (second * second);
  return s;
}

}  // namespace

TEST_CASE("BERT-base has the published number of parameters") {
  const ParameterTable table = make_parameter_table(bert_base());
  CHECK(total_with_prefix(table, "bert.") == 108891648);
  CHECK(total_with_prefix(table, "cls.") == 622650);
  CHECK(table.total() == 109514298);
}

TEST_CASE("OPT-125m has the published number of parameters") {
  const ParameterTable table = make_parameter_table(opt_125m());
  CHECK(table.total() == 124059648);
  ModelConfig narrower = opt_125m();
  narrower.word_embed_proj_dim = 512;
  // Embeddings lose 256 columns; project_in and project_out come without bias.
  CHECK(make_parameter_table(narrower).total() == 124059648 - 256 * 50272 + 2 * 512 * 768);
}

TEST_CASE("BERT's parameters are named and shaped as in BertForMaskedLM") {
  const ParameterTable table = make_parameter_table(bert_base());
  CHECK(shape(table, "bert.embeddings.word_embeddings.weight") == Shape{30522, 768});
  CHECK(shape(table, "bert.embeddings.position_embeddings.weight") == Shape{512, 768});
  CHECK(shape(table, "bert.embeddings.token_type_embeddings.weight") == Shape{2, 768});
  CHECK(shape(table, "bert.embeddings.LayerNorm.weight") == Shape{768});
  CHECK(shape(table, "bert.embeddings.LayerNorm.bias") == Shape{768});
  for (const std::string layer : {"bert.encoder.layer.0", "bert.encoder.layer.11"}) {
    for (const std::string part : {"query", "key", "value"}) {
      CHECK(shape(table, layer + ".attention.self." + part + ".weight") == Shape{768, 768});
      CHECK(shape(table, layer + ".attention.self." + part + ".bias") == Shape{768});
    }
    CHECK(shape(table, layer + ".attention.output.dense.weight") == Shape{768, 768});
    CHECK(shape(table, layer + ".attention.output.dense.bias") == Shape{768});
    CHECK(shape(table, layer + ".attention.output.LayerNorm.weight") == Shape{768});
    CHECK(shape(table, layer + ".intermediate.dense.weight") == Shape{3072, 768});
    CHECK(shape(table, layer + ".intermediate.dense.bias") == Shape{3072});
    CHECK(shape(table, layer + ".output.dense.weight") == Shape{768, 3072});
    CHECK(shape(table, layer + ".output.dense.bias") == Shape{768});
    CHECK(shape(table, layer + ".output.LayerNorm.bias") == Shape{768});
  }
  CHECK(shape(table, "cls.predictions.bias") == Shape{30522});
  CHECK(shape(table, "cls.predictions.transform.dense.weight") == Shape{768, 768});
  CHECK(shape(table, "cls.predictions.transform.dense.bias") == Shape{768});
  CHECK(shape(table, "cls.predictions.transform.LayerNorm.weight") == Shape{768});
  CHECK(shape(table, "cls.predictions.transform.LayerNorm.bias") == Shape{768});
  CHECK(table.find("cls.predictions.decoder.weight") == nullptr);  // tied: it appears once
  CHECK(table.all().size() == 5 + 12 * 16 + 5);
}

TEST_CASE("OPT's parameters are named and shaped as in OPTForCausalLM") {
  ModelConfig config = opt_125m();
  config.word_embed_proj_dim = 512;
  const ParameterTable table = make_parameter_table(config);
  CHECK(shape(table, "model.decoder.embed_tokens.weight") == Shape{50272, 512});
  CHECK(shape(table, "model.decoder.embed_positions.weight") == Shape{514, 768});
  CHECK(shape(table, "model.decoder.project_in.weight") == Shape{768, 512});
  CHECK(shape(table, "model.decoder.project_out.weight") == Shape{512, 768});
  CHECK(table.find("model.decoder.project_in.bias") == nullptr);
  CHECK(table.find("lm_head.weight") == nullptr);  // tied: it appears once
  for (const std::string layer : {"model.decoder.layers.0", "model.decoder.layers.11"}) {
    for (const std::string part : {"k_proj", "v_proj", "q_proj", "out_proj"}) {
      CHECK(shape(table, layer + ".self_attn." + part + ".weight") == Shape{768, 768});
      CHECK(shape(table, layer + ".self_attn." + part + ".bias") == Shape{768});
    }
    CHECK(shape(table, layer + ".self_attn_layer_norm.weight") == Shape{768});
    CHECK(shape(table, layer + ".fc1.weight") == Shape{3072, 768});
    CHECK(shape(table, layer + ".fc1.bias") == Shape{3072});
    CHECK(shape(table, layer + ".fc2.weight") == Shape{768, 3072});
    CHECK(shape(table, layer + ".fc2.bias") == Shape{768});
    CHECK(shape(table, layer + ".final_layer_norm.bias") == Shape{768});
  }
  CHECK(shape(table, "model.decoder.final_layer_norm.weight") == Shape{768});
  CHECK(table.all().size() == 4 + 12 * 16 + 2);
}

TEST_CASE("parameters do not overlap; query, key and value lie back to back") {
  for (const ModelConfig& config : {test::tiny_bert(), test::tiny_opt("softmax1", 5)}) {
    const ParameterTable table = make_parameter_table(config);
    std::int64_t end = 0;
    std::set<std::string> names;
    for (const Parameter& p : table.all()) {
      INFO(p.name);
      CHECK(p.offset >= end);
      end = p.offset + p.count;
      CHECK(names.insert(p.name).second);
      CHECK(p.decay == (p.shape.size() == 2));  // weights and embeddings decay; biases and layer norms do not
      CHECK(p.layernorm_weight == (p.name.find("orm.weight") != std::string::npos));
    }
    CHECK(table.flat_size() >= end);
    const bool bert = config.model_type == "bert";
    const std::string self = bert ? "bert.encoder.layer.1.attention.self." : "model.decoder.layers.1.self_attn.";
    const Parameter& query = *table.find(self + (bert ? "query" : "q_proj") + ".weight");
    const Parameter& key = *table.find(self + (bert ? "key" : "k_proj") + ".weight");
    const Parameter& value = *table.find(self + (bert ? "value" : "v_proj") + ".bias");
    const Parameter& key_bias = *table.find(self + (bert ? "key" : "k_proj") + ".bias");
    CHECK(query.offset % 64 == 0);
    CHECK(key.offset == query.offset + 12 * 12);
    CHECK(value.offset == key_bias.offset + 12);
  }
}

TEST_CASE("a table refuses the same name twice") {
  ParameterTable table;
  Parameter p;
  p.name = "weight";
  p.shape = {2};
  table.add(p);
  CHECK_THROWS_AS(table.add(p), Error);
}

TEST_CASE("initial values have the distribution that Hugging Face gives them") {
  ModelConfig config = test::tiny_bert();
  config.vocab_size = 2000;
  config.hidden_size = 96;
  config.initializer_range = 0.02;
  config.intermediate_size = 200;
  const ParameterTable table = make_parameter_table(config);
  const std::vector<float> flat = initial(table, 11);

  const Parameter& words = *table.find("bert.embeddings.word_embeddings.weight");
  std::vector<float> word_values = slice(table, flat, words.name);
  for (std::int64_t c = 0; c < 96; ++c) CHECK(word_values[static_cast<std::size_t>(3 * 96 + c)] == 0.0f);  // pad_token_id 3
  word_values.erase(word_values.begin() + 3 * 96, word_values.begin() + 4 * 96);
  // Five standard errors: of the mean, of the deviation, of the kurtosis.
  const Statistics s = statistics(word_values);
  const double root = std::sqrt(static_cast<double>(word_values.size()));
  CHECK(std::abs(s.mean) < 5 * 0.02 / root);
  CHECK(std::abs(s.deviation - 0.02) < 5 * 0.02 / std::sqrt(2.0) / root);
  CHECK(std::abs(s.kurtosis - 3.0) < 5 * std::sqrt(24.0) / root);
  CHECK(s.largest > 0.02 * 3.5);

  for (const Parameter& p : table.all()) {
    INFO(p.name);
    const Statistics one = statistics(slice(table, flat, p.name));
    if (p.layernorm_weight) {
      CHECK(one.smallest == 1.0);
      CHECK(one.largest == 1.0);
    } else if (p.shape.size() == 1) {
      CHECK(one.smallest == 0.0);
      CHECK(one.largest == 0.0);
    } else {
      CHECK(std::abs(one.deviation - 0.02) < 5 * 0.02 / std::sqrt(2.0 * static_cast<double>(p.count)) + 1e-5);
    }
  }
}

TEST_CASE("attention_init linear draws from U(+-1/sqrt(fan_in)), weights and biases") {
  for (ModelConfig config : {test::tiny_bert(), test::tiny_opt()}) {
    config.attention_init = "linear";
    config.hidden_size = 144;
    const ParameterTable table = make_parameter_table(config);
    const std::vector<float> flat = initial(table, 5);
    const double half = 1.0 / 12.0;
    int uniform = 0;
    for (const Parameter& p : table.all()) {
      INFO(p.name);
      const bool bert_projection = p.name.find(".attention.self.") != std::string::npos;
      const bool opt_projection = p.name.find(".self_attn.") != std::string::npos;
      if (!bert_projection && !opt_projection) {
        CHECK(p.init != Init::uniform_fan_in);
        continue;
      }
      ++uniform;
      const Statistics s = statistics(slice(table, flat, p.name));
      const double root = std::sqrt(static_cast<double>(p.count));
      CHECK(s.smallest >= -half);
      CHECK(s.largest <= half);
      CHECK(std::abs(s.mean) < 5 * half / std::sqrt(3.0) / root);
      CHECK(std::abs(s.deviation - half / std::sqrt(3.0)) < 5 * half * 0.26 / root);  // sqrt((9/5 - 1) / 4 / 3) = 0.258
      CHECK(s.largest > half * (1.0 - 12.0 / static_cast<double>(p.count)));
    }
    CHECK(uniform == (config.model_type == "bert" ? 2 * 6 : 2 * 8));  // BERT keeps the output dense's own initialisation
  }
}

TEST_CASE("an initial value depends on seed, name and element alone") {
  ModelConfig small = test::tiny_bert(), deep = test::tiny_bert();
  deep.num_hidden_layers = 5;
  deep.vocab_size = 40;
  const ParameterTable small_table = make_parameter_table(small), deep_table = make_parameter_table(deep);
  const std::vector<float> a = initial(small_table, 1), b = initial(deep_table, 1), c = initial(small_table, 2);
  CHECK(a == initial(small_table, 1));
  const std::string name = "bert.encoder.layer.1.output.dense.weight";
  CHECK(slice(small_table, a, name) == slice(deep_table, b, name));
  CHECK(slice(small_table, a, name) != slice(small_table, c, name));
  CHECK(slice(small_table, a, name) != slice(small_table, a, "bert.encoder.layer.0.output.dense.weight"));
  const std::vector<float> words = slice(small_table, a, "bert.embeddings.word_embeddings.weight");
  std::vector<float> more_words = slice(deep_table, b, "bert.embeddings.word_embeddings.weight");
  more_words.resize(words.size());
  CHECK(words == more_words);  // a larger table begins with the smaller one
}

TEST_CASE("the meaning of a seed is frozen") {
  ParameterTable table;
  Parameter p;
  p.name = "model.decoder.layers.0.fc1.weight";
  p.shape = {3, 3};
  p.init = Init::normal;
  p.init_scale = 1.0;
  table.add(p);
  p.name = "model.decoder.layers.0.self_attn.q_proj.bias";
  p.shape = {5};
  p.init = Init::uniform_fan_in;
  table.add(p);
  const std::vector<float> flat = initial(table, 42);
  // Computed apart from this program, from the definitions: FNV-1a of the name, Philox4x32-7, Box-Muller.
  const double normal[] = {0.5860585497229229, 1.8482607757182568,  1.361071970335489,
                           -1.737200444328983, -0.7840714487021321, 0.9843039473421924,
                           1.246515749918401,  -0.2282618065809302, 1.0204369659780579};
  const double uniform[] = {0.7095059994106427, 0.6747187311353389, 0.6941961801376346, -0.4027400604373046,
                            0.9478119542341275};
  for (int e = 0; e < 9; ++e) CHECK(std::abs(flat[static_cast<std::size_t>(e)] - normal[e]) < 2e-7);
  for (int e = 0; e < 5; ++e) CHECK(std::abs(flat[static_cast<std::size_t>(64 + e)] - uniform[e]) < 1e-7);
}
