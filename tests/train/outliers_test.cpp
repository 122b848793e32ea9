#include "train/outliers.h"

#include <cmath>

#include "kernels/reference/reference.h"
#include "tests/catch.h"
#include "train/huggingface_config.h"

namespace outeffhop {
namespace {

ModelConfig tiny(const std::string& model_type) {
  ModelConfig config = default_model_config(model_type);
  config.vocab_size = 16;
  config.hidden_size = 8;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.intermediate_size = 8;
  config.max_position_embeddings = 8;
  return config;
}

/// A model whose sites can be visited with values of our own.
struct Watched {
  std::unique_ptr<Device> device = make_reference_device(DType::f32);
  std::unique_ptr<Model> model;
  std::unique_ptr<OutlierVisitor> visitor;

  explicit Watched(const std::string& model_type) {
    ModelOptions options;
    options.max_batch = 2;
    options.max_sequence = 5;
    options.training = false;
    model = make_model(tiny(model_type), options, *device);
    visitor = std::make_unique<OutlierVisitor>(*device, *model, 2, 5);
  }

  void show(const std::string& name, Site::Kind kind, std::vector<float> values, std::int64_t samples, std::int64_t rows) {
    const Buffer buffer(*device, values.size() * sizeof(float));
    device->copy_in(buffer.data(), values.data(), buffer.bytes());
    const Site site{name, kind, 0};
    REQUIRE(visitor->wants(site));
    visitor->visit(
        site, {{buffer.data(), DType::f32}, samples, rows, static_cast<std::int64_t>(values.size()) / (samples * rows), 0});
  }

  const OutlierModule& module(const std::string& name, OutlierGroup group) const {
    for (const OutlierModule& m : visitor->modules()) {
      if (m.name == name && m.group == group) return m;
    }
    FAIL("no module " << name);
    return visitor->modules().front();
  }
};

TEST_CASE("Kurtosis has the reference's unbiased deviation and floor") {
  // [1, 2, 3, 4, 10]: mean 4, squares 50, fourth powers 1394.
  CHECK(kurtosis({10.0, 4.0, 50.0, 1394.0}, 5) == Approx(1.7843200).epsilon(1e-7));
  CHECK(kurtosis({3.0, 3.0, 0.0, 0.0}, 4) == 0.0);
}

TEST_CASE("A sequence is a sample: moments run over tokens and channels together, averages over sequences") {
  Watched w("bert");
  // Two sequences of 5 tokens and one channel.
  w.show("bert.encoder.layer.0.output.dense", Site::Kind::projection, {1, 2, 3, 4, 10, -1, -2, -3, -4, -10}, 2, 5);
  w.show("bert.encoder.layer.0.output.dense", Site::Kind::projection, {4, 3, 2, 1, -20}, 1, 5);
  const OutlierModule& m = w.module("bert.encoder.layer.0.output.dense", OutlierGroup::ffn_output);
  CHECK(m.samples == 3);
  CHECK(m.inf_norm() == Approx((10.0 + 10.0 + 20.0) / 3));
  const double mean = -2.0, squares = 36 + 25 + 16 + 9 + 324, fourths = 1296 + 625 + 256 + 81 + 104976;
  CHECK(m.mean_kurtosis() == Approx((2 * 1.78432 + kurtosis({20.0, mean, squares, fourths}, 5)) / 3).epsilon(1e-6));
}

TEST_CASE("For BERT the maximum is over feed-forward outputs, the kurtosis over these and the layer norms after them") {
  Watched w("bert");
  for (int layer = 0; layer < 2; ++layer) {
    const std::string output = "bert.encoder.layer." + std::to_string(layer) + ".output";
    w.show(output + ".dense", Site::Kind::projection, {1, 2, 3, 4, layer ? 10.0f : 5.0f}, 1, 5);
    w.show(output, Site::Kind::residual_sum, {0, 0, 0, 0, 100.0f + static_cast<float>(layer)}, 1, 5);
    w.show(output + ".LayerNorm", Site::Kind::layernorm, {1, -1, 1, -1, 30.0f - static_cast<float>(layer)}, 1, 5);
  }
  const OutlierSummary s = w.visitor->summary();
  CHECK(s.max_inf_norm == 10.0);
  CHECK(s.max_ffn_output == 10.0);
  CHECK(s.max_layernorm_input == 101.0);
  CHECK(s.max_layernorm_output == 30.0);
  double sum = 0.0, largest = 0.0;
  for (const OutlierModule& m : w.visitor->modules()) {
    if (m.group == OutlierGroup::layernorm_input) continue;
    sum += m.mean_kurtosis();
    largest = std::max(largest, m.mean_kurtosis());
  }
  CHECK(s.average_kurtosis == Approx(sum / 4));
  CHECK(s.max_kurtosis == largest);
  CHECK_FALSE(w.visitor->wants({"bert.encoder.layer.0.attention.output.dense", Site::Kind::projection, 0}));
  CHECK_FALSE(w.visitor->wants({"bert.encoder.layer.0.attention.self.scores", Site::Kind::scores, 0}));
}

TEST_CASE(
    "For OPT there are 5 L + 1 modules; fc2 and the norm before it count tokens; the maximum is the residual stream's") {
  Watched w("opt");
  CHECK(w.visitor->modules().size() == 11);
  w.show("model.decoder.layers.0.fc2", Site::Kind::projection, {1, 2, 3, 4, 10, 2, 4, 6, 8, 20}, 1, 2);
  const OutlierModule& fc2 = w.module("model.decoder.layers.0.fc2", OutlierGroup::ffn_output);
  CHECK(fc2.samples == 2);
  CHECK(fc2.inf_norm() == 15.0);
  CHECK(fc2.mean_kurtosis() == Approx(1.78432).epsilon(1e-6));
  w.show("model.decoder.layers.0.final_layer_norm", Site::Kind::layernorm, {1, 2, 3, 4, 5, 6}, 1, 2);
  CHECK(w.module("model.decoder.layers.0.final_layer_norm", OutlierGroup::inner).samples == 2);
  w.show("model.decoder.layers.1", Site::Kind::residual_sum, {1, 2, 3, 4, -13, 6}, 1, 2);
  w.show("model.decoder.final_layer_norm", Site::Kind::layernorm, {1, 2, 3, 4, 101, 6}, 1, 2);
  CHECK(w.visitor->summary().max_inf_norm == 13.0);
  CHECK(w.visitor->summary().max_layer_output == 13.0);
}

TEST_CASE("A value that is not finite is seen in the summary") {
  // In either place: a finite module after it must not take the maximum back.
  for (const int broken : {0, 1}) {
    INFO("layer " << broken);
    Watched w("bert");
    for (int layer = 0; layer < 2; ++layer) {
      const std::string output = "bert.encoder.layer." + std::to_string(layer) + ".output";
      const float value = layer == broken ? NAN : 3.0f;
      w.show(output + ".dense", Site::Kind::projection, {1, 2, value, 4, 10}, 1, 5);
      w.show(output, Site::Kind::residual_sum, {1, 2, value, 4, 10}, 1, 5);
      w.show(output + ".LayerNorm", Site::Kind::layernorm, {1, 2, value, 4, 10}, 1, 5);
    }
    const OutlierSummary s = w.visitor->summary();
    for (const double value : {s.max_inf_norm, s.average_kurtosis, s.max_kurtosis, s.max_ffn_output, s.max_layernorm_input,
                               s.max_layernorm_output}) {
      CHECK_FALSE(std::isfinite(value));
    }
  }
}

}  // namespace
}  // namespace outeffhop
