// Sites: declared once, in forward order; the observed forward equals the fused one; what a visitor writes is what the model
// goes on with. On the fp64 reference, where equal means equal to the last digits.
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "kernels/reference/reference.h"
#include "tests/catch.h"
#include "tests/model/model_support.h"
#include "tests/test_support.h"

using namespace outeffhop;
using namespace outeffhop::test;

namespace {

std::int64_t elements(const SiteValue& value) { return value.samples * value.rows_per_sample * value.channels; }

/// Looks at every site that `pick` takes and records the order, the shapes and the values.
struct Recorder : SiteVisitor {
  Device& device;
  std::function<bool(const Site&)> pick = [](const Site&) { return true; };
  std::vector<std::string> order;
  std::map<std::string, SiteValue> shapes;            ///< of the last visit
  std::map<std::string, std::vector<double>> values;  ///< of all visits, one after the other

  explicit Recorder(Device& d) : device(d) {}
  bool wants(const Site& site) const override { return pick(site); }
  void visit(const Site& site, const SiteValue& value) override {
    order.push_back(site.name);
    shapes[site.name] = value;
    const std::vector<double> seen = read_tensor(device, value.data, elements(value));
    std::vector<double>& all = values[site.name];
    all.insert(all.end(), seen.begin(), seen.end());
  }
};

/// Changes the values of one site.
struct Changer : SiteVisitor {
  Device& device;
  std::string name;
  Site::Kind kind;
  std::function<std::vector<double>(std::vector<double>)> change;

  Changer(Device& d, const Site& site, std::function<std::vector<double>(std::vector<double>)> f)
      : device(d), name(site.name), kind(site.kind), change(std::move(f)) {}
  bool wants(const Site& site) const override { return site.name == name && site.kind == kind; }
  void visit(const Site&, const SiteValue& value) override {
    write_tensor(device, value.data, change(read_tensor(device, value.data, elements(value))));
  }
};

struct Subject {
  ModelConfig config;
  std::unique_ptr<Device> device = make_reference_device();
  std::mt19937_64 rng = generator(900);
  HostBatch batch;
  ModelUnderTest model;

  explicit Subject(const ModelConfig& c, bool training = false)
      : config(c), batch(random_batch(c, rng, 3, 7, {7, 4, 1})), model(c, {DType::f64, 3, 7, training, 1}, *device) {
    if (batch.label_rows.empty()) batch.label_rows = {0}, batch.label_ids = {5};
    model.set_parameters(random_parameters(model->parameters(), rng));
  }
};

std::vector<ModelConfig> configs() {
  ModelConfig relu = tiny_opt("vanilla");
  relu.hidden_act = "relu";
  return {tiny_bert(), tiny_bert("vanilla"), tiny_opt(), tiny_opt("softmax_n(4)", 7), relu};
}

std::string describe(const ModelConfig& config) {
  return config.model_type + " " + config.attn_softmax + " " + std::to_string(config.word_embed_proj_dim);
}

}  // namespace

TEST_CASE("sites carry Hugging Face's names in forward order, and are visited in that order") {
  const std::vector<std::string> bert_layer = {"attention.self.query",
                                               "attention.self.key",
                                               "attention.self.value",
                                               "attention.self.scores",
                                               "attention.self.probabilities",
                                               "attention.self",
                                               "attention.output.dense",
                                               "attention.output",
                                               "attention.output.LayerNorm",
                                               "intermediate.dense",
                                               "intermediate",
                                               "output.dense",
                                               "output",
                                               "output.LayerNorm"};
  const std::vector<std::string> opt_layer = {"self_attn_layer_norm",
                                              "self_attn.q_proj",
                                              "self_attn.k_proj",
                                              "self_attn.v_proj",
                                              "self_attn.scores",
                                              "self_attn.probabilities",
                                              "self_attn",
                                              "self_attn.out_proj",
                                              "self_attn.residual",
                                              "final_layer_norm",
                                              "fc1",
                                              "activation_fn",
                                              "fc2",
                                              ""};
  for (const ModelConfig& config : configs()) {
    INFO(describe(config));
    Subject subject(config);
    const bool bert = config.model_type == "bert", projected = config.word_embed_proj_dim != 0;
    std::vector<std::string> expected;
    if (bert) {
      expected = {"bert.embeddings", "bert.embeddings.LayerNorm"};
    } else {
      if (projected) expected.push_back("model.decoder.project_in");
      expected.push_back("model.decoder.embeddings");
    }
    for (int i = 0; i < 2; ++i) {
      const std::string layer = (bert ? "bert.encoder.layer." : "model.decoder.layers.") + std::to_string(i);
      for (const std::string& part : bert ? bert_layer : opt_layer)
        expected.push_back(part.empty() ? layer : layer + "." + part);
    }
    if (bert) {
      for (const char* name : {"cls.predictions.transform.dense", "cls.predictions.transform.transform_act_fn",
                               "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"}) {
        expected.push_back(name);
      }
    } else {
      expected.push_back("model.decoder.final_layer_norm");
      if (projected) expected.push_back("model.decoder.project_out");
      expected.push_back("lm_head");
    }
    std::vector<std::string> declared;
    for (const Site& site : subject.model->sites()) {
      declared.push_back(site.name);
      const bool in_layer =
          site.name.find(".layer.") != std::string::npos || site.name.find(".layers.") != std::string::npos;
      CHECK((site.layer >= 0) == in_layer);
    }
    CHECK(declared == expected);
    Recorder recorder(*subject.device);
    subject.model.forward(subject.batch, &recorder);
    CHECK(recorder.order == declared);
  }
}

TEST_CASE("what a visitor sees fits together") {
  for (const ModelConfig& config : configs()) {
    INFO(describe(config));
    Subject subject(config);
    Recorder seen(*subject.device);
    const double loss = subject.model.forward(subject.batch, &seen);
    const std::int64_t B = 3, T = 7, C = 12, H = 3, F = 14, V = config.vocab_size;
    const bool bert = config.model_type == "bert";
    const auto N = static_cast<std::int64_t>(subject.batch.label_rows.size());
    for (const Site& site : subject.model->sites()) {
      INFO(site.name);
      const SiteValue& value = seen.shapes.at(site.name);
      const bool head =
          site.name.starts_with("cls.") || site.name.ends_with("project_out") || site.kind == Site::Kind::logits;
      CHECK(value.samples == (head ? 1 : B));
      if (site.kind == Site::Kind::scores || site.kind == Site::Kind::probabilities) {
        CHECK(value.rows_per_sample == H * T);
        CHECK(value.channels == T);
      } else if (head) {
        CHECK(value.rows_per_sample == N);
      } else {
        CHECK(value.rows_per_sample == T);
        const bool wide =
            site.kind == Site::Kind::activation || site.name.ends_with("fc1") || site.name.ends_with("intermediate.dense");
        CHECK(value.channels == (wide ? F : C));
      }
    }

    // Logits give the loss.
    const std::vector<double>& logits = seen.values.at(bert ? "cls.predictions.decoder" : "lm_head");
    double sum = 0.0;
    for (std::int64_t i = 0; i < N; ++i) {
      double exponentials = 0.0;
      for (std::int64_t v = 0; v < V; ++v) exponentials += std::exp(logits[static_cast<std::size_t>(i * V + v)]);
      sum += std::log(exponentials) -
             logits[static_cast<std::size_t>(i * V + subject.batch.label_ids[static_cast<std::size_t>(i)])];
    }
    CHECK(std::abs(sum - loss) < 1e-10);

    // A row of probabilities sums to S / (n + S) with S = sum of exp(score) over the visible keys.
    const std::string self = bert ? "bert.encoder.layer.1.attention.self" : "model.decoder.layers.1.self_attn";
    const std::vector<double>&scores = seen.values.at(self + ".scores"), &p = seen.values.at(self + ".probabilities");
    const double n = softmax_constant(config.attn_softmax);
    for (std::int64_t row = 0; row < B * H * T; ++row) {
      const std::int64_t length = subject.batch.key_lengths[static_cast<std::size_t>(row / (H * T))];
      double S = 0.0, total = 0.0;
      for (std::int64_t key = 0; key < T; ++key) {
        const auto at = static_cast<std::size_t>(row * T + key);
        const bool visible = key < length && (bert || key <= row % T);
        if (visible) S += std::exp(scores[at]);
        if (!visible) CHECK(p[at] == 0.0);
        total += p[at];
      }
      CHECK(std::abs(total - S / (n + S)) < 1e-12);
    }

    // A layer norm's output follows from its input.
    const std::string sum_name = bert ? "bert.encoder.layer.1.output" : "model.decoder.layers.1";
    const std::string norm_name = bert ? "bert.encoder.layer.1.output.LayerNorm" : "model.decoder.final_layer_norm";
    const std::vector<double> parameters = subject.model.stored_parameters();
    const auto weight = static_cast<std::size_t>(subject.model->parameters().find(norm_name + ".weight")->offset);
    const auto bias = static_cast<std::size_t>(subject.model->parameters().find(norm_name + ".bias")->offset);
    const std::vector<double>&x = seen.values.at(sum_name), &y = seen.values.at(norm_name);
    for (std::size_t row = 0; row < static_cast<std::size_t>(B * T); ++row) {
      double mean = 0.0, variance = 0.0;
      for (std::size_t c = 0; c < 12; ++c) mean += x[row * 12 + c] / 12;
      for (std::size_t c = 0; c < 12; ++c) variance += std::pow(x[row * 12 + c] - mean, 2) / 12;
      for (std::size_t c = 0; c < 12; ++c) {
        const double expected =
            (x[row * 12 + c] - mean) / std::sqrt(variance + config.layer_norm_eps) * parameters[weight + c] +
            parameters[bias + c];
        CHECK(std::abs(y[row * 12 + c] - expected) < 1e-10);
      }
    }
  }
}

TEST_CASE("the observed forward equals the fused one, whichever sites are looked at") {
  for (const ModelConfig& config : configs()) {
    for (const bool training : {false, true}) {
      INFO(describe(config) << (training ? " training" : ""));
      Subject subject(config, training);
      const double fused = subject.model.forward(subject.batch);
      Recorder everything(*subject.device);
      CHECK(std::abs(subject.model.forward(subject.batch, &everything) - fused) < 1e-11);
      for (const Site& only : subject.model->sites()) {
        INFO(only.name);
        Recorder one(*subject.device);
        one.pick = [&](const Site& site) { return site.name == only.name; };
        CHECK(std::abs(subject.model.forward(subject.batch, &one) - fused) < 1e-11);
        CHECK(one.order.size() == 1);
        CHECK(one.values.at(only.name) == everything.values.at(only.name));
      }
    }
  }
}

TEST_CASE("what a visitor writes at any site reaches the loss") {
  for (const ModelConfig& config : configs()) {
    Subject subject(config);
    const double before = subject.model.forward(subject.batch);
    for (const Site& site : subject.model->sites()) {
      INFO(describe(config) << ", " << site.name);
      Changer halve(*subject.device, site, [](std::vector<double> values) {
        for (std::size_t i = 0; i < values.size(); ++i) values[i] *= i % 2 ? 0.5 : 1.25;
        return values;
      });
      CHECK(std::abs(subject.model.forward(subject.batch, &halve) - before) > 1e-6);
    }
    CHECK(subject.model.forward(subject.batch) == before);  // nothing lasts
  }
}

TEST_CASE("a state that is put in the place of another decides everything that follows") {
  for (const ModelConfig& config : configs()) {
    Subject subject(config);
    // The same positions and labels, other tokens: the two runs differ only by what flows through the sites below.
    HostBatch other = subject.batch;
    for (std::int32_t& id : other.input_ids) id = static_cast<std::int32_t>((id + 5) % config.vocab_size);
    Recorder recorder(*subject.device);
    const double loss = subject.model.forward(subject.batch, &recorder);
    CHECK(std::abs(subject.model.forward(other) - loss) > 1e-3);
    int states = 0;
    for (const Site& site : subject.model->sites()) {
      // Where the whole model passes through one tensor.
      const bool state =
          site.kind == Site::Kind::embedding_sum || site.kind == Site::Kind::residual_sum || site.kind == Site::Kind::logits;
      if (!state) continue;
      INFO(describe(config) << ", " << site.name);
      Changer replace(*subject.device, site, [&](const std::vector<double>&) { return recorder.values.at(site.name); });
      CHECK(std::abs(subject.model.forward(other, &replace) - loss) < 1e-11);
      ++states;
    }
    CHECK(states == 6);
  }
}

TEST_CASE("scores too large for the workspace are shown a block of query rows at a time") {
  ModelConfig config = tiny_opt();
  config.num_attention_heads = 12;
  config.num_hidden_layers = 1;
  config.max_position_embeddings = 512;
  const std::unique_ptr<Device> device = make_reference_device();
  std::mt19937_64 rng = generator(950);
  // 12 heads x 512 x 512 fp64 scores are 25 MB; the workspace holds 16 MiB of them.
  const HostBatch batch = random_batch(config, rng, 1, 512);
  ModelUnderTest model(config, {DType::f64, 1, 512, false, 1}, *device);
  model.set_parameters(random_parameters(model->parameters(), rng));

  struct Blocks : SiteVisitor {
    std::vector<std::int64_t> begins, rows;
    bool wants(const Site& site) const override { return site.kind == Site::Kind::probabilities; }
    void visit(const Site&, const SiteValue& value) override {
      begins.push_back(value.row_begin);
      rows.push_back(value.rows_per_sample / 12);
    }
  } blocks;
  const double fused = model.forward(batch);
  CHECK(std::abs(model.forward(batch, &blocks) - fused) < 1e-9 * std::abs(fused));
  REQUIRE(blocks.begins.size() > 1);
  std::int64_t next = 0;
  for (std::size_t i = 0; i < blocks.begins.size(); ++i) {
    CHECK(blocks.begins[i] == next);
    next += blocks.rows[i];
  }
  CHECK(next == 512);
}
