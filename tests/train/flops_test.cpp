#include "train/flops.h"

#include "tests/catch.h"

namespace outeffhop {
namespace {

/// 2 layers, 4 channels, 8 of the feed-forward layer, 10 token ids: small enough to count by hand.
ModelConfig small_model(const std::string& type) {
  ModelConfig config;
  config.model_type = type;
  config.vocab_size = 10;
  config.hidden_size = 4;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.intermediate_size = 8;
  return config;
}

Batch batch_of(std::int64_t B, std::int64_t T, std::vector<std::int32_t> labels) {
  Batch batch;
  batch.B = B;
  batch.T = T;
  batch.input_ids.assign(labels.size(), 1);
  batch.labels = std::move(labels);
  return batch;
}

TEST_CASE("FLOPs are those counted by hand") {
  // A row of a layer: q, k, v 3 x 4 x 4, output 4 x 4, expand 4 x 8, contract 8 x 4: 128 weights. A label of the
  // decoder: 40.
  const PassWork work{6, 2, 18};
  const double body = 3 * 2 * 6 * (2 * 128), decoder = 3 * 2 * 2 * 40;
  const double attention = 3 * 2 * 18 * (2 * 4 + 2 * 4);  // a pair: 4 multiplications and additions for q.k, as many for p v
  CHECK(training_flops(small_model("opt"), work) == body + decoder + attention);
  CHECK(training_flops(small_model("bert"), work) == body + decoder + attention + 3 * 2 * 2 * 16);  // transform.dense

  ModelConfig projected = small_model("opt");
  projected.word_embed_proj_dim = 3;
  // project_in 3 x 4 a row, project_out 4 x 3 and the decoder 3 x 10 a label.
  CHECK(training_flops(projected, work) == body + 3 * 2 * 6 * 12 + 3 * 2 * 2 * (12 + 30) + attention);
}

TEST_CASE("What is recomputed is counted by hand, and apart") {
  // One of two layers again: 128 weights less the 8 x 4 of contract.
  const PassWork work{6, 2, 18};
  for (const char* type : {"bert", "opt"}) CHECK(recomputed_flops(small_model(type), work) == 2 * 6 * 96 + 18 * 16);
}

TEST_CASE("FLOPs are those of the benchmark") {
  // The same figures stand in tests/python/test_bench.py.
  struct Shape {
    std::string type;
    std::int64_t hidden, layers, vocabulary, T, B, labels;
    double step_flops;
  };
  for (const Shape& shape : {Shape{"bert", 256, 4, 30522, 128, 32, 614, 112778717184.0},
                             Shape{"bert", 768, 12, 30522, 128, 16, 307, 1116932668416.0},
                             Shape{"opt", 256, 4, 50272, 512, 8, 4088, 405885812736.0},
                             Shape{"opt", 768, 12, 50272, 512, 4, 2044, 1575271858176.0}}) {
    INFO(shape.type << " of " << shape.hidden << " channels");
    ModelConfig config = small_model(shape.type);
    config.hidden_size = shape.hidden;
    config.intermediate_size = 4 * shape.hidden;
    config.num_hidden_layers = shape.layers;
    config.vocab_size = shape.vocabulary;
    const auto T = static_cast<double>(shape.T), B = static_cast<double>(shape.B);
    const double pairs = B * (shape.type == "opt" ? T * (T + 1) / 2 : T * T);
    CHECK(training_flops(config, {B * T, static_cast<double>(shape.labels), pairs}) == shape.step_flops);
  }
}

TEST_CASE("Work is counted label by label and query by query") {
  const std::int32_t no = kIgnoredLabel;
  Batch batch = batch_of(2, 3, {5, no, no, no, 6, 7});
  const auto pairs = [&](bool causal) { return count_work(batch, causal).pairs; };
  CHECK(count_work(batch, false).rows == 6);
  CHECK(count_work(batch, false).labels == 3);
  CHECK(pairs(false) == 2 * 9);
  CHECK(pairs(true) == 2 * 6);

  batch.key_lengths = {3, 2};  // the last query of the second row is padding, which sees what is none
  CHECK(pairs(false) == 9 + 3 * 2);
  CHECK(pairs(true) == 6 + (1 + 2 + 2));

  batch.key_ranges = {0, 2, 0, 2, 2, 3,   // documents of two tokens and of one
                      0, 1, 1, 2, 2, 2};  // of one and of one, then padding
  CHECK(pairs(false) == 2 + 2 + 1 + 1 + 1 + 0);
  CHECK(pairs(true) == 1 + 2 + 1 + 1 + 1 + 0);
}

}  // namespace
}  // namespace outeffhop
